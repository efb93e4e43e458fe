//! What the proxy says of itself by HTTP: figures, status, and whether clients should come here.

use std::collections::BTreeMap;
use std::future::pending;
use std::sync::Arc;

use api::pages::{Page, serve_pages};
use api::{Access, Credentials, Place};
use config::ProxyHttp;
use route::{Port, Snapshot};
use tls::{ClientCertificates, ServerSettings};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::door::DoorError;
use crate::figures::Figures;
use crate::front::Front;
use crate::listening::Listeners;
use crate::login::read_password;
use crate::secure;
use crate::{ProxyError, Status};

/// How it is entered. What files say of it is read again with the other files.
#[derive(Debug)]
pub(crate) struct HttpDoor {
    config: ProxyHttp,
    door: watch::Sender<Arc<api::Door>>,
}

/// Takes the address, from the proxy before where that had it, and reads what the configuration
/// names.
///
/// # Errors
/// [`ProxyError`], naming the address or the file.
pub(crate) async fn open(
    config: ProxyHttp,
    sockets: &mut Listeners,
) -> Result<(HttpDoor, TcpListener), ProxyError> {
    let place = Place { listen: config.listen.clone(), backlog: None };
    let listened = listen(&place, sockets).await;
    let listener =
        listened.map_err(|source| ProxyError::ListenHttp { listen: place.listen, source })?;
    let door = watch::Sender::new(Arc::new(read(&config)?));
    Ok((HttpDoor { config, door }, listener))
}

async fn listen(place: &Place, sockets: &mut Listeners) -> std::io::Result<TcpListener> {
    let listener = match sockets.inherited(&api::addresses(place).await?) {
        Some(socket) => TcpListener::from_std(socket)?,
        None => api::bind(place).await?,
    };
    sockets.hold("http", &listener)?;
    Ok(listener)
}

impl HttpDoor {
    /// Reads the files again. Connections that are there stay as they are.
    ///
    /// # Errors
    /// [`DoorError`], naming the file; what was read before goes on being used.
    pub(crate) fn reload(&self) -> Result<(), DoorError> {
        self.door.send_replace(Arc::new(read(&self.config)?));
        Ok(())
    }
}

fn read(config: &ProxyHttp) -> Result<api::Door, DoorError> {
    let authentication = match &config.user {
        None => None,
        Some(user) => {
            let password = read_password(&user.password_file)?;
            let password = String::from_utf8_lossy(password.expose()).into_owned();
            Some(Credentials { username: user.username.clone(), password })
        }
    };
    let tls = config.certificate.as_ref().map(|files| {
        let settings = ServerSettings {
            identity: secure::identity(files),
            authorities: config.ca.clone(),
            clients: match &config.ca {
                Some(_) => ClientCertificates::Required,
                None => ClientCertificates::NotAsked,
            },
        };
        settings.acceptor()
    });
    let access =
        Access { authentication, client_certificate: config.ca.is_some(), ..Access::default() };
    Ok(api::Door { access, tls: tls.transpose()?, ..api::Door::default() })
}

/// The status of each cluster, by its name.
type Statuses = BTreeMap<String, watch::Receiver<Status>>;

/// Answers for as long as the proxy runs and no successor does.
pub(crate) async fn serve(
    front: Arc<Front>,
    listener: Option<TcpListener>,
    statuses: Statuses,
    drains: CancellationToken,
) {
    if let (Some(listener), Some(http)) = (listener, &front.http) {
        let door = http.door.subscribe();
        let front = front.clone();
        let pages = Arc::new(move |path: &str| page(&front, &statuses, path));
        let ended = serve_pages(listener, door, pages, drains.clone().cancelled_owned()).await;
        if !drains.is_cancelled() {
            tracing::error!(?ended, "the proxy answers no HTTP any more");
        }
    }
    pending().await
}

/// What the first part of a path asks for; the second, where there is one, is the cluster.
fn page(front: &Front, statuses: &Statuses, path: &str) -> Option<Page> {
    let path = path.strip_prefix('/')?;
    let (what, cluster) = path.split_once('/').map_or((path, None), |(w, c)| (w, Some(c)));
    match (what, cluster) {
        ("metrics", None) => return Some(Page::metrics(Figures::of(front).to_text())),
        ("health" | "liveness", None) => return Some(Page::check(true, "the proxy runs")),
        // A cluster that is not known is no reason to keep the clients of the others away.
        ("ready", None) => {
            let all = statuses.values().map(|status| ready(&status.borrow().routes));
            return all.min_by_key(|page| page.status);
        }
        _ => {}
    }
    // Cloned at once: holding the borrow would block the next publication.
    let status = statuses.get(cluster.unwrap_or(&front.own.name))?.borrow().clone();
    Some(match what {
        "status" => Page::json(serde_json::to_string(&status).unwrap_or_default()),
        "ready" => ready(&status.routes),
        "read-write" => route(&status.routes, Port::ReadWrite),
        "read-only" => route(&status.routes, Port::ReadOnly),
        _ => return None,
    })
}

/// Whether clients are led to a server at this port.
fn route(routes: &Snapshot, port: Port) -> Page {
    let targets = routes.targets(port);
    let names: Vec<&str> = targets.iter().map(|target| target.member.0.as_str()).collect();
    match names.is_empty() {
        false => Page::check(true, &format!("led to {}", names.join(", "))),
        true => Page::check(false, routes.awaiting.as_deref().unwrap_or("no server is known")),
    }
}

/// Whether another proxy cannot do better for clients than this one: it has a server for them, or
/// knows that there is none. While the cluster changes its primary, clients come to be held.
fn ready(routes: &Snapshot) -> Page {
    if routes.fresh {
        return Page::check(true, "the view of the cluster is current");
    }
    match routes.targets(Port::ReadOnly).is_empty() {
        false => Page::check(true, "the view is not current, the route is as it was last"),
        true => Page::check(false, "the proxy does not know of a server, nor the cluster"),
    }
}
