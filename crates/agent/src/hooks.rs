//! The operator's commands, from the configuration to the instance.

use config::{CustomBootstrap, CustomMethod, Dynamic, ReplicaMethod, Static};

/// Those that make data directories, of a configuration that the node's own file is merged into.
pub(crate) fn for_the_instance(settings: &Static, merged: &Dynamic) -> postgres::Hooks {
    let hooks = &merged.postgresql.hooks;
    let remote = merged.standby_cluster.as_ref().map(|remote| &remote.create_replica_methods);
    let bootstrap = &settings.bootstrap;
    let post = bootstrap.post_bootstrap.as_ref();
    postgres::Hooks {
        bootstrap: bootstrap.custom.as_ref().map(custom_bootstrap),
        post_bootstrap: post.map(|command| command.words().to_vec()).unwrap_or_default(),
        pg_hba: bootstrap.pg_hba.clone().unwrap_or_default(),
        replica_methods: hooks.methods().iter().map(replica_method).collect(),
        remote_methods: match remote.filter(|names| !names.is_empty()) {
            Some(names) => hooks.methods_named(names).iter().map(replica_method).collect(),
            None => Vec::new(),
        },
    }
}

fn custom_bootstrap(custom: &CustomBootstrap) -> postgres::CustomBootstrap {
    postgres::CustomBootstrap {
        method: custom.method.clone(),
        command: custom.command.words().to_vec(),
        no_params: custom.no_params,
        keep_existing_recovery_conf: custom.keep_existing_recovery_conf,
        recovery_conf: custom.recovery_conf.clone(),
        arguments: custom.arguments.clone(),
    }
}

fn replica_method(method: &ReplicaMethod) -> postgres::ReplicaMethod {
    let CustomMethod { name, command, keep_data, no_leader, no_params, arguments } = match method {
        ReplicaMethod::Basebackup => return postgres::ReplicaMethod::Basebackup,
        ReplicaMethod::Custom(custom) => custom,
    };
    postgres::ReplicaMethod::Custom(postgres::CustomMethod {
        name: name.clone(),
        command: command.words().to_vec(),
        keep_data: *keep_data,
        no_leader: *no_leader,
        no_params: *no_params,
        arguments: arguments.clone(),
    })
}
