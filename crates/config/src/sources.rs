//! Where a static configuration comes from: files, and the environment over them.

use crate::environment::{self, WHOLE};
use crate::problem::{ConfigError, Problem};
use crate::tree::{Kind, Node, Place};

/// Texts of files and the environment, as their reader found them. Later files win over earlier
/// ones, the environment over all: mappings merge, a null takes a key away, anything else replaces.
#[derive(Clone, Default)]
pub struct Sources {
    files: Vec<(String, String)>,
    environment: Vec<(String, String)>,
}

impl std::fmt::Debug for Sources {
    /// Without the texts, which hold passwords (I6).
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<&str> = self.files.iter().map(|(name, _)| name.as_str()).collect();
        f.debug_struct("Sources").field("files", &names).finish_non_exhaustive()
    }
}

impl Sources {
    /// The variables of an environment; those that are none of Patroni's are left out.
    #[must_use]
    pub fn environment(variables: impl IntoIterator<Item = (String, String)>) -> Sources {
        let known = |(name, value): &(String, String)| environment::is_known(name, value);
        let environment = variables.into_iter().filter(known).collect();
        Sources { files: Vec::new(), environment }
    }

    /// With one file more; `name` only names it in problems.
    #[must_use]
    pub fn with_file(mut self, name: impl Into<String>, text: impl Into<String>) -> Sources {
        self.files.push((name.into(), text.into()));
        self
    }

    /// Whether nothing configures anything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.files.is_empty() && self.environment.is_empty()
    }

    /// Everything merged, as JSON in which a number is a text, spelled as it stands: for readers of
    /// a few keys.
    ///
    /// # Errors
    /// The first text that is not YAML or not a mapping.
    pub fn to_spelled_json(&self) -> Result<serde_json::Value, ConfigError> {
        self.mapping().map(|tree| tree.to_spelled_json())
    }

    /// Everything merged, as JSON.
    ///
    /// # Errors
    /// The first text that is not YAML or not a mapping.
    pub fn to_json(&self) -> Result<serde_json::Value, ConfigError> {
        self.mapping().map(|tree| tree.to_json())
    }

    fn mapping(&self) -> Result<Node, ConfigError> {
        let (tree, names) = self.read()?;
        if matches!(tree.kind, Kind::Map(_) | Kind::Null) {
            return Ok(tree);
        }
        let problem = Problem::new(tree.at, "", "the document must be a mapping of keys to values");
        Err(ConfigError { problems: named(vec![problem], &names) })
    }

    /// The merged tree, and the names of its sources.
    pub(crate) fn read(&self) -> Result<(Node, Vec<String>), ConfigError> {
        let mut names: Vec<String> = Vec::new();
        let mut tree: Option<Node> = None;
        let whole = self.environment.iter().filter(|(name, _)| name == WHOLE);
        let whole: Vec<&(String, String)> = whole.filter(|_| self.files.is_empty()).collect();
        for (name, text) in self.files.iter().chain(whole) {
            let read = Node::from_yaml(text, names.len());
            names.push(name.clone());
            let read =
                read.map_err(|problem| ConfigError { problems: named(vec![problem], &names) })?;
            match &mut tree {
                None => tree = Some(read),
                Some(tree) => tree.merge(read),
            }
        }
        // What is missing is missing in no source.
        let nowhere = Place { source: usize::MAX, line: 0 };
        let mut tree = tree.unwrap_or(Node { at: nowhere, kind: Kind::Map(Vec::new()) });
        let settings = environment::settings(&self.environment, names.len())
            .map_err(|problem| ConfigError { problems: vec![problem] })?;
        for setting in settings {
            names.push(setting.variable);
            tree.set(&setting.key, setting.node);
        }
        Ok((tree, names))
    }
}

/// The problems in the order of their places, each with the name of its source.
pub(crate) fn named(mut problems: Vec<Problem>, names: &[String]) -> Vec<Problem> {
    problems.sort_by_key(|problem| problem.at);
    for problem in &mut problems {
        problem.file = names.get(problem.at.source).cloned().unwrap_or_default();
    }
    problems
}
