use super::*;
use crate::Static;

fn environment(pairs: &[(&str, &str)]) -> Sources {
    Sources::environment(pairs.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())))
}

fn host() -> Host {
    Host { name: Some("db1".to_owned()), address: Some("10.0.0.1".to_owned()) }
}

fn template(pairs: &[(&str, &str)]) -> Template {
    Template::new(&environment(pairs), &host()).expect("valid variables")
}

fn read(text: &str) -> Value {
    Sources::default().with_file("sample", text).to_json().expect("YAML")
}

#[test]
fn a_sample_has_patronis_defaults_and_what_the_environment_says() {
    let text = template(&[
        ("PATRONI_SCOPE", "batman"),
        ("PATRONI_ETCD3_HOSTS", "10.0.0.9:2379"),
        ("PATRONI_REPLICATION_USERNAME", "repl"),
        ("PATRONI_REPLICATION_PASSWORD", "no"),
        ("PATRONI_REWIND_USERNAME", "rew"),
    ])
    .sample(15);
    let root = read(&text);
    assert_eq!(root["scope"], "batman");
    assert_eq!(root["name"], "db1");
    assert_eq!(root["restapi"]["listen"], "10.0.0.1:8008");
    let section = &root["postgresql"];
    assert_eq!(section["data_dir"], FIXME);
    assert_eq!(section["pg_hba"][1], "host replication repl all scram-sha-256");
    assert_eq!(section["authentication"]["replication"]["password"], "no");
    assert_eq!(
        section["authentication"]["rewind"],
        json!({ "username": "rew", "password": FIXME })
    );
    let dcs = &root["bootstrap"]["dcs"];
    assert_eq!((&dcs["ttl"], &dcs["postgresql"]["use_pg_rewind"]), (&json!(30), &json!(true)));
    assert_eq!(dcs["postgresql"]["parameters"]["wal_level"], "replica");
    assert_eq!(dcs["postgresql"]["parameters"]["hot_standby"], "on", "a text, not a boolean");
    assert_eq!(dcs["postgresql"]["parameters"]["wal_keep_size"], "128MB");
    let order: Vec<usize> =
        ["scope:", "\nname:", "\nlog:", "\nrestapi:", "\netcd3:", "\nbootstrap:"]
            .into_iter()
            .chain(["    loop_wait:", "    ttl:", "\npostgresql:", "\ntags:"])
            .map(|key| text.find(key).unwrap_or_else(|| panic!("{key} is not in {text}")))
            .collect();
    assert!(order.is_sorted(), "{text}");
    assert!(text.contains("please use `patronictl edit-config`!\n  dcs:\n    loop_wait: 10\n"));
}

#[test]
fn a_sample_is_a_file_that_an_agent_reads() {
    let text = template(&[("PATRONI_ETCD3_HOST", "10.0.0.9")]).sample(18);
    let text = text.replace("data_dir: \"#FIXME\"", "data_dir: /d").replace("#FIXME", "x");
    let read = Static::read(&Sources::default().with_file("sample", text));
    let (node, warnings) = read.expect("valid");
    assert_eq!(node.name.as_str(), "db1");
    assert!(warnings.is_empty(), "{warnings:?}");
}

#[test]
fn what_is_no_mapping_is_replaced() {
    let whole = "bootstrap: 5\npostgresql:\n  authentication: {replication: x}\n  bin_name: 1\n";
    let root = read(&template(&[("PATRONI_CONFIGURATION", whole)]).sample(15));
    assert_eq!(root["postgresql"]["pg_hba"][1], "host replication  all scram-sha-256");
    assert_eq!(root["bootstrap"]["dcs"]["ttl"], 30);
    assert!(root["postgresql"].get("bin_name").is_none());
}

#[test]
fn an_unknown_host_is_to_be_filled_in() {
    let host = Host { name: None, address: None };
    let root = read(&Template::new(&environment(&[]), &host).expect("nothing").sample(15));
    assert_eq!(
        (&root["name"], &root["postgresql"]["listen"]),
        (&json!(FIXME), &json!("#FIXME:5432"))
    );
}

fn server() -> Running {
    let map = |pairs: &[(&str, &str)]| {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    };
    Running {
        major: 15,
        port: None,
        username: "admin".to_owned(),
        password: Secret::new("s3cret"),
        connection: map(&[("sslmode", "prefer"), ("sslnegotiation", "postgres")]),
        settings: map(&[
            ("data_directory", "/d"),
            ("cluster_name", "here"),
            ("port", "5433"),
            ("listen_addresses", "10.0.0.1, localhost"),
            ("archive_command", "cp %p /a"),
            ("hba_file", "/d/pg_hba.conf"),
            ("max_connections", "42"),
            ("jit", "off"),
        ]),
        bin_dir: "/bin15".to_owned(),
        hba: Some("# x\n  local all all trust\n\nhostall x\ninclude a\n".to_owned()),
        ident: Some("# x\n\n".to_owned()),
    }
}

#[test]
fn a_running_server_fills_its_part_in() {
    let variables = [("PATRONI_SUPERUSER_USERNAME", "other"), ("PATRONI_NAME", "n1")];
    let root = read(&template(&variables).of(&server()));
    assert_eq!((&root["scope"], &root["name"]), (&json!("here"), &json!("n1")));
    let section = &root["postgresql"];
    assert_eq!(section["listen"], "10.0.0.1, localhost:5433");
    assert_eq!(section["connect_address"], "10.0.0.1:5433");
    assert_eq!((&section["data_dir"], &section["bin_dir"]), (&json!("/d"), &json!("/bin15")));
    assert_eq!(
        section["authentication"],
        json!({
            "superuser": { "username": "admin", "password": "s3cret", "sslmode": "prefer" },
            "replication": { "username": FIXME, "password": FIXME },
        })
    );
    assert_eq!(
        section["parameters"],
        json!({ "archive_command": "cp %p /a", "hba_file": "/d/pg_hba.conf" })
    );
    assert_eq!(section["pg_hba"], json!(["local all all trust"]));
    assert!(section.get("pg_ident").is_none());
    let shared = &root["bootstrap"]["dcs"]["postgresql"]["parameters"];
    assert_eq!((&shared["max_connections"], &shared["jit"]), (&json!("42"), &json!("off")));
    assert!(shared.get("cluster_name").is_none() && shared.get("port").is_none());
}

#[test]
fn newer_servers_may_say_more() {
    let running = Running { major: 18, port: Some("6543".to_owned()), ..server() };
    let root = read(&template(&[]).of(&running));
    assert_eq!(root["postgresql"]["pg_hba"], json!(["local all all trust", "include a"]));
    assert_eq!(root["postgresql"]["connect_address"], "10.0.0.1:6543");
    let superuser = &root["postgresql"]["authentication"]["superuser"];
    assert_eq!(superuser["sslnegotiation"], "postgres");
}

#[test]
fn what_is_unsupported_keeps_its_section() {
    // The file is also for reading by eye: nothing that was said is dropped.
    let root = read(&template(&[("PATRONI_CITUS_GROUP", "1")]).sample(15));
    assert_eq!(root["citus"]["group"], "1");
}
