//! The cluster's configuration as the data directory keeps it (`patroni.dynamic.json`): with it a
//! cluster whose DCS was lost begins again, and a Patroni node that takes this place starts.

use config::{Dynamic, Static};
use serde_json::Value;

/// The settings with what the data directory keeps in the place of `bootstrap.dcs`, which is for a
/// new cluster. What cannot be used is left aside, with a warning.
pub(crate) fn with_kept(mut settings: Static) -> Static {
    let path = settings.postgresql.data_dir.join(postgres::DYNAMIC_FILE);
    let Ok(text) = std::fs::read_to_string(&path) else {
        return settings;
    };
    let kept = serde_json::from_str::<Value>(&text).map_err(|error| error.to_string());
    let usable = kept.and_then(|kept| match Dynamic::from_json(&kept) {
        Ok(_) => Ok(kept),
        Err(errors) => Err(errors.join("; ")),
    });
    match usable {
        Ok(kept) => settings.bootstrap.dcs = kept,
        Err(error) => {
            tracing::warn!(path = %path.display(), error, "the kept configuration cannot be used");
        }
    }
    settings
}

#[cfg(test)]
mod tests {
    use super::*;
    use config::Sources;

    fn settings(data_dir: &std::path::Path) -> Static {
        let text = format!(
            "scope: demo\nname: a\netcd3: {{host: localhost:2379}}\n\
             restapi: {{listen: 127.0.0.1:8008}}\nbootstrap: {{dcs: {{ttl: 20}}}}\n\
             postgresql:\n  listen: 127.0.0.1:5432\n  data_dir: {}\n  \
             authentication: {{replication: {{username: r}}}}\n",
            data_dir.display()
        );
        let sources = Sources::default().with_file("a.yml", text);
        Static::read(&sources).expect("it is complete").0
    }

    #[test]
    fn what_the_data_directory_keeps_beats_the_file() {
        let dir = tempfile::tempdir().expect("temp dir");
        let ttl = |settings: Static| settings.bootstrap.dcs["ttl"].clone();
        assert_eq!(ttl(with_kept(settings(dir.path()))), 20);
        let path = dir.path().join(postgres::DYNAMIC_FILE);
        std::fs::write(&path, "{\"ttl\": 25}").expect("written");
        assert_eq!(ttl(with_kept(settings(dir.path()))), 25);
        for unusable in ["{\"ttl\": \"long\"}", "{"] {
            std::fs::write(&path, unusable).expect("written");
            assert_eq!(ttl(with_kept(settings(dir.path()))), 20);
        }
    }
}
