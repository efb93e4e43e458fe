use std::collections::BTreeSet;

use super::tests_support::sample;
use super::*;
use types::SyncNames;

fn places() -> [Place; 1] {
    [Place { setting: "hba_file", path: "/d/data/pg_hba.conf".into() }]
}

fn upstream() -> Upstream {
    Upstream { name: "node-0".into(), host: "10.0.0.1".to_owned(), port: 5433 }
}

#[test]
fn what_is_written_is_read_back() {
    let names = BTreeSet::from(["node-0".into(), "node-2".into()]);
    let sync = SyncRule::Any(SyncNames { number: 1, names });
    for upstream in [Some(upstream()), None] {
        let state = ConfState { upstream, sync: sync.clone() };
        let text = render(&sample(), &places(), &state);
        assert_eq!(ConfState::read(&text), state);
    }
    assert_eq!(ConfState::read("garbage\n= =\n'"), ConfState::default());
}

#[test]
fn the_file_has_patronis_shape() {
    let state = ConfState { upstream: Some(upstream()), sync: SyncRule::Off };
    let text = render(&sample(), &places(), &state);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[2], "include 'postgresql.base.conf'");
    assert!(lines.contains(&"work_mem = '8MB'"));
    assert!(lines.contains(&"search_path = 'a''b\\\\c'"));
    assert!(lines.contains(&"synchronous_standby_names = ''"));
    assert!(lines.contains(&"hba_file = '/d/data/pg_hba.conf'"));
    assert!(lines.contains(&"primary_slot_name = 'node_1'"));
    assert!(lines.contains(&"recovery_target_timeline = 'latest'"));
    assert!(lines.contains(&"restore_command = 'cp ''/a/%f'' \"%p\"'"));
    let conninfo = lines.iter().find(|l| l.starts_with("primary_conninfo"));
    let expected = "dbname=postgres user=replicator passfile=/s/pg\\\\ pass host=10.0.0.1 \
                    port=5433 sslmode=prefer application_name=node-1 gssencmode=prefer \
                    channel_binding=prefer connect_timeout=5";
    assert!(conninfo.expect("written").contains(expected), "{text}");
    assert!(!text.contains("it's") && !text.contains("it''s"), "I6");
}

#[test]
fn without_slots_none_is_named() {
    let state = ConfState { upstream: Some(upstream()), sync: SyncRule::Off };
    let config = InstanceConfig { use_slots: false, ..sample() };
    let text = render(&config, &places(), &state);
    assert!(text.contains("primary_slot_name = ''\n"), "{text}");
}

#[test]
fn cleared_means_no_stream_and_no_archive() {
    let text = render(&sample(), &places(), &ConfState::default());
    for name in ["primary_conninfo", "primary_slot_name", "restore_command"] {
        assert!(text.contains(&format!("{name} = ''\n")), "{name}");
    }
}

#[test]
fn patronis_file_can_be_read() {
    let text = "primary_conninfo = 'user=r host=''h 1'' port=77'\nsynchronous_standby_names=a";
    let state = ConfState::read(text);
    let upstream = state.upstream.expect("there is one");
    assert_eq!((upstream.host.as_str(), upstream.port), ("h 1", 77));
    assert_eq!(state.sync.to_setting(), "a");
}

#[test]
fn passwords_are_escaped_in_the_password_file() {
    let text = pgpass(&sample(), &upstream());
    assert_eq!(
        text,
        "10.0.0.1:5433:*:replicator:it's\n10.0.0.1:5433:*:rewinder:r\\\\1\n\
         10.0.0.1:5433:*:postgres:s\\:1\n"
    );
}

#[test]
fn settings_that_would_override_ours_leave_auto_conf() {
    assert_eq!(clean_auto_conf("# x\nwork_mem = '1MB'\n"), None);
    let text = "# x\nprimary_conninfo = 'host=x'\nwork_mem = '1MB'\nrestore_command='y'\n";
    assert_eq!(clean_auto_conf(text).as_deref(), Some("# x\nwork_mem = '1MB'\n"));
}

#[test]
fn arguments_respect_the_floor_of_a_standby() {
    let arguments = server_arguments(&sample(), None);
    assert!(arguments.contains(&"--max_connections=50".to_owned()));
    assert!(arguments.contains(&"--restart_after_crash=off".to_owned()));
    assert!(arguments.contains(&"--wal_level=replica".to_owned()));
}

#[test]
fn recovery_settings_of_the_operators_stand_but_for_the_connection_and_targets() {
    let mut config = sample();
    config.custom_conf = Some("/etc/mine.conf".into());
    for (name, value) in [
        ("recovery_min_apply_delay", "5min"),
        ("restore_command", "mine"),
        ("primary_conninfo", "host=elsewhere"),
        ("recovery_target_time", "2020-01-01"),
    ] {
        config.recovery_conf.insert(name.to_owned(), value.to_owned());
    }
    let upstream = Upstream { name: "a".into(), host: "10.0.0.1".to_owned(), port: 5432 };
    let state = ConfState { upstream: Some(upstream), ..ConfState::default() };
    let text = render(&config, &places(), &state);
    for line in [
        "include '/etc/mine.conf'",
        "recovery_min_apply_delay = '5min'",
        "restore_command = 'mine'",
        "recovery_target_time = ''",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} is not in {text}");
    }
    assert!(!text.contains("elsewhere"), "{text}");
    // A fenced primary's archive is not read on.
    let fenced = render(&config, &places(), &ConfState::default());
    assert!(fenced.contains("restore_command = ''\n"), "{fenced}");
}

#[test]
fn a_keys_password_stands_in_a_file_of_its_own() {
    let mut config = sample();
    let mut role = config.rewind.clone();
    assert_eq!(service_file(&role).expect("none is fine"), None);
    assert!(!rewind_conninfo(&config, &upstream()).contains("service"));
    role.sslpassword = Some(Secret::new(" a=b#c"));
    let text = service_file(&role).expect("it can be written");
    assert_eq!(text.as_deref(), Some("[pgherd]\nsslpassword= a=b#c\n"));
    config.rewind = role.clone();
    let source = rewind_conninfo(&config, &upstream());
    assert!(source.ends_with(" service=pgherd") && !source.contains("a=b"), "{source}");
    for unpassable in ["hush ", "hu\nsh", &"x".repeat(1001)] {
        role.sslpassword = Some(Secret::new(unpassable));
        let refused = service_file(&role).expect_err("libpq would read another one").to_string();
        assert!(refused.contains("rewinder") && !refused.contains(unpassable.trim()), "{refused}");
    }
}
