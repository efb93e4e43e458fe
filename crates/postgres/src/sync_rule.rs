//! `synchronous_standby_names`: written as Patroni writes it, read in any legal form
//! (as Patroni 4.1 has it).

use std::collections::BTreeSet;

use types::{MemberName, SyncNames};

/// Who must confirm a commit.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum SyncRule {
    /// Nobody.
    #[default]
    Off,
    /// The first `number` of the names that are connected (`synchronous_mode: on`).
    First(SyncNames),
    /// Any `number` of the names (`synchronous_mode: quorum`).
    Any(SyncNames),
}

impl SyncRule {
    /// The parameter's text.
    #[must_use]
    pub fn to_setting(&self) -> String {
        let (any, sync) = match self {
            SyncRule::Off => return String::new(),
            SyncRule::First(sync) => ("", sync),
            SyncRule::Any(sync) => ("ANY ", sync),
        };
        let names: Vec<String> = sync.names.iter().map(|n| quoted(n.as_str())).collect();
        match names.as_slice() {
            [] => String::new(),
            [one] if any.is_empty() => one.clone(),
            several => format!("{any}{} ({})", sync.number, several.join(",")),
        }
    }

    /// Reads the parameter's text; `None` if PostgreSQL would not take it either.
    #[must_use]
    pub fn parse(text: &str) -> Option<SyncRule> {
        let tokens = tokens(text)?;
        let mut rest = tokens.as_slice();
        if rest.is_empty() {
            return Some(SyncRule::Off);
        }
        let keyword = |token: &Token, word: &str| match token {
            Token::Word(found) => found.eq_ignore_ascii_case(word),
            Token::Quoted(_) | Token::Open | Token::Close | Token::Comma => false,
        };
        // A lone `any` is a name; as a keyword it is followed by the number.
        let method = matches!(rest.get(1), Some(Token::Word(_)));
        let any = method && keyword(&rest[0], "any");
        if any || (method && keyword(&rest[0], "first")) {
            rest = &rest[1..];
        }
        let mut number = 1;
        if let [Token::Word(n), Token::Open, inner @ .., Token::Close] = rest {
            number = n.parse().ok()?;
            rest = inner;
        }
        let names = list(rest)?;
        let sync = SyncNames { number, names };
        Some(if any { SyncRule::Any(sync) } else { SyncRule::First(sync) })
    }

    /// The names and the number, without the method.
    #[must_use]
    pub fn names(&self) -> SyncNames {
        match self {
            SyncRule::Off => SyncNames::default(),
            SyncRule::First(sync) | SyncRule::Any(sync) => sync.clone(),
        }
    }

    /// Whether commits wait at all.
    #[must_use]
    pub fn waits(&self) -> bool {
        !self.to_setting().is_empty()
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    Quoted(String),
    Open,
    Close,
    Comma,
}

fn tokens(text: &str) -> Option<Vec<Token>> {
    let mut tokens = Vec::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '(' => tokens.push(Token::Open),
            ')' => tokens.push(Token::Close),
            ',' => tokens.push(Token::Comma),
            '"' => {
                let mut name = String::new();
                loop {
                    match chars.next()? {
                        '"' if chars.peek() == Some(&'"') => {
                            chars.next();
                            name.push('"');
                        }
                        '"' => break,
                        other => name.push(other),
                    }
                }
                tokens.push(Token::Quoted(name));
            }
            c if c.is_whitespace() => {}
            c => {
                let mut word = String::from(c);
                while let Some(c) = chars.next_if(|c| !c.is_whitespace() && !"(),\"".contains(*c)) {
                    word.push(c);
                }
                tokens.push(Token::Word(word));
            }
        }
    }
    Some(tokens)
}

fn list(tokens: &[Token]) -> Option<BTreeSet<MemberName>> {
    let mut names = BTreeSet::new();
    for item in tokens.split(|t| *t == Token::Comma) {
        match item {
            [Token::Word(name) | Token::Quoted(name)] => names.insert(MemberName(name.clone())),
            _ => return None,
        };
    }
    Some(names)
}

fn quoted(name: &str) -> String {
    let mut chars = name.chars();
    let plain = chars.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
        && chars.all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '$')
        && !["first", "any"].contains(&name.to_ascii_lowercase().as_str());
    if plain { name.to_owned() } else { format!("\"{}\"", name.replace('"', "\"\"")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sync(number: usize, names: &[&str]) -> SyncNames {
        SyncNames { number, names: names.iter().map(|n| MemberName::from(*n)).collect() }
    }

    #[test]
    fn rules_are_written_as_patroni_writes_them_and_read_back() {
        let cases = [
            (SyncRule::Off, ""),
            (SyncRule::First(sync(1, &["node-2"])), "\"node-2\""),
            (SyncRule::First(sync(1, &["a"])), "a"),
            (SyncRule::First(sync(1, &["any"])), "\"any\""),
            (SyncRule::First(sync(2, &["node-1", "node-2"])), "2 (\"node-1\",\"node-2\")"),
            (SyncRule::Any(sync(1, &["node-1", "b"])), "ANY 1 (b,\"node-1\")"),
            (SyncRule::Any(sync(1, &["b"])), "ANY 1 (b)"),
            (SyncRule::First(sync(1, &["we\"ird"])), "\"we\"\"ird\""),
        ];
        for (rule, text) in cases {
            assert_eq!(rule.to_setting(), text);
            assert_eq!(SyncRule::parse(text), Some(rule), "{text}");
        }
    }

    #[test]
    fn other_legal_forms_are_read_and_nonsense_is_not() {
        let first = SyncRule::First(sync(2, &["a", "b", "c"]));
        assert_eq!(SyncRule::parse(" FIRST 2 (a, b ,c)"), Some(first));
        let plain = SyncRule::First(sync(1, &["a", "b"]));
        assert_eq!(SyncRule::parse("a,b"), Some(plain));
        let star = SyncRule::First(sync(1, &["*"]));
        assert_eq!(SyncRule::parse("*"), Some(star));
        assert_eq!(SyncRule::parse("2 (a"), None);
        assert_eq!(SyncRule::parse("a,,b"), None);
        assert_eq!(SyncRule::parse("\"a"), None);
    }
}
