//! A server that runs is asked for what a configuration for it has to say.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Node, bin_dirs, new_primary};
use postgres::{Reach, Secret, describe};

#[tokio::test]
async fn a_running_server_says_its_settings_programs_and_files() {
    for bin_dir in bin_dirs() {
        let node = Node::with("node-a", &bin_dir, &[("work_mem", "8MB")]);
        new_primary(&node).await;
        let config = node.instance.config();
        let connection =
            format!("host={} port={} dbname=postgres", config.socket_dir.display(), config.port);
        let reach = Reach::new(Some(&connection), |_| None).unwrap();
        let said = describe(&reach, "postgres", &Secret::new("super ' secret")).await.unwrap();
        assert_eq!(said.major, node.instance.programs().major);
        assert_eq!(said.settings["work_mem"], "8MB");
        assert_eq!(said.settings["cluster_name"], config.scope);
        assert_eq!(said.settings["data_directory"], config.data_dir.to_str().unwrap());
        assert!(!said.settings.contains_key("recovery_target_timeline"), "{said:?}");
        assert_eq!(said.bin_dir, bin_dir.canonicalize().unwrap());
        assert!(said.hba.unwrap().contains(&config.pg_hba[0]));

        node.sql("CREATE ROLE plain LOGIN PASSWORD 'x'").await;
        let refused = describe(&reach, "plain", &Secret::new("x")).await.unwrap_err();
        let text = "The provided user does not have superuser privilege";
        assert_eq!(refused.to_string(), text);
        let refused = describe(&reach, "postgres", &Secret::new("wrong-one")).await.unwrap_err();
        let refused = refused.to_string();
        assert!(refused.contains("password") && !refused.contains("wrong-one"), "{refused}");
    }
}
