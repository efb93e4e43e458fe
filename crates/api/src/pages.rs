//! Pages of a program that is no agent: texts that are made when somebody asks for them, behind a
//! [`Door`]. Who may not come in sees none of them, whatever it asks for.

use std::future::{Future, IntoFuture as _};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{ConnectInfo, State};
use axum::http::{HeaderValue, Method, Request, header};
use axum::response::Response;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::door::Door;
use crate::handlers::answer;
use crate::listener::{Bounded, Bounds, CalledBy};

/// Who asks are scrapers and load balancers, a few of each.
const BOUNDS: Bounds = Bounds {
    connections: 64,
    silence: Duration::from_secs(60),
    handshake: Duration::from_secs(10),
};

const PLAIN: &str = "text/plain; charset=utf-8";

/// What is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// HTTP status.
    pub status: u16,
    /// The body's type.
    pub kind: &'static str,
    /// The body.
    pub text: String,
}

impl Page {
    /// Metrics in Prometheus' text format.
    #[must_use]
    pub fn metrics(text: String) -> Page {
        Page { status: 200, kind: crate::handlers::PROMETHEUS, text }
    }

    /// A document of JSON.
    #[must_use]
    pub fn json(text: String) -> Page {
        Page { status: 200, kind: crate::handlers::JSON, text }
    }

    /// A check: 200 if it is passed, else 503.
    #[must_use]
    pub fn check(passed: bool, why: &str) -> Page {
        plain(if passed { 200 } else { 503 }, why)
    }
}

fn plain(status: u16, line: &str) -> Page {
    Page { status, kind: PLAIN, text: format!("{line}\n") }
}

/// The page of a path, if there is one. It is made on a thread that may wait and compute.
pub type Pages = Arc<dyn Fn(&str) -> Option<Page> + Send + Sync>;

/// Serves the pages until `shutdown` completes; running answers are finished first.
///
/// # Errors
/// When the listener fails for good.
pub fn serve_pages(
    listener: TcpListener,
    door: watch::Receiver<Arc<Door>>,
    pages: Pages,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> impl Future<Output = std::io::Result<()>> {
    serve_within(BOUNDS, listener, Served { door, pages }, shutdown)
}

#[derive(Clone)]
struct Served {
    door: watch::Receiver<Arc<Door>>,
    pages: Pages,
}

fn serve_within(
    bounds: Bounds,
    listener: TcpListener,
    served: Served,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> impl Future<Output = std::io::Result<()>> {
    let listener = Bounded::new(listener, served.door.clone(), bounds);
    let app = axum::Router::new().fallback(dispatch).with_state(served);
    let app = app.into_make_service_with_connect_info::<CalledBy>();
    axum::serve(listener, app).with_graceful_shutdown(shutdown).into_future()
}

async fn dispatch(State(served): State<Served>, request: Request<Body>) -> Response {
    let door = Arc::clone(&served.door.borrow());
    let is_head = request.method() == Method::HEAD;
    let page = match look(&door, &request) {
        Ok(()) => page(served.pages, request.uri().path().to_owned()).await,
        Err(refused) => refused,
    };
    let text = if is_head { String::new() } else { page.text };
    let mut response = answer(page.status, page.kind, text);
    let headers = response.headers_mut();
    headers.extend(door.headers.clone());
    if page.status == 401 {
        let challenge = HeaderValue::from_static("Basic realm=\"pgherd\"");
        headers.insert(header::WWW_AUTHENTICATE, challenge);
    }
    response
}

/// Whether the request may have its page.
fn look(door: &Door, request: &Request<Body>) -> Result<(), Page> {
    let authorization = request.headers().get(header::AUTHORIZATION).map(HeaderValue::as_bytes);
    let caller = request.extensions().get::<ConnectInfo<CalledBy>>();
    let certified = caller.and_then(|ConnectInfo(CalledBy(caller))| caller.certified());
    let checked = door.access.check(authorization, certified);
    checked.map_err(|refusal| plain(refusal.status(), &refusal.to_string()))?;
    // HAProxy's checks ask by OPTIONS unless told otherwise.
    match *request.method() {
        Method::GET | Method::HEAD | Method::OPTIONS => Ok(()),
        _ => Err(plain(405, "pages can be looked at, by GET")),
    }
}

async fn page(pages: Pages, path: String) -> Page {
    match tokio::task::spawn_blocking(move || pages(&path)).await {
        Ok(page) => page.unwrap_or_else(|| plain(404, "there is no such page")),
        Err(error) => {
            tracing::error!(%error, "a page cannot be made");
            plain(500, "the page cannot be made; the log says why")
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;
    use crate::server_tests::{HANG, send};
    use crate::{Access, Credentials};

    async fn start(bounds: Bounds, access: Access) -> (u16, watch::Sender<Arc<Door>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        let door = watch::Sender::new(Arc::new(Door { access, ..Door::default() }));
        let pages: Pages = Arc::new(|path| match path {
            "/a" => Some(Page::check(true, "yes")),
            "/b" => Some(Page::check(false, "no")),
            "/bug" => panic!("a bug"),
            _ => None,
        });
        let served = Served { door: door.subscribe(), pages };
        tokio::spawn(serve_within(bounds, listener, served, std::future::pending()));
        (port, door)
    }

    #[tokio::test]
    async fn pages_are_looked_at() {
        let (port, _door) = start(BOUNDS, Access::default()).await;
        for (method, path, status, body) in [
            ("GET", "/a", 200, "yes\n"),
            ("GET", "/a?x=y", 200, "yes\n"),
            ("GET", "/b", 503, "no\n"),
            ("HEAD", "/b", 503, ""),
            ("OPTIONS", "/a", 200, "yes\n"),
            ("GET", "/c", 404, "there is no such page\n"),
            ("POST", "/a", 405, "pages can be looked at, by GET\n"),
            ("GET", "/bug", 500, "the page cannot be made; the log says why\n"),
        ] {
            let (got, _, text) = send(port, method, path, "", "").await;
            assert_eq!((got, text.as_str()), (status, body), "{method} {path}");
        }
    }

    #[tokio::test]
    async fn who_does_not_say_the_password_sees_nothing() {
        let credentials = Credentials { username: "ab".into(), password: "cd".into() };
        let access = Access { authentication: Some(credentials), ..Access::default() };
        let (port, door) = start(BOUNDS, access).await;
        for path in ["/a", "/c"] {
            let (status, head, _) = send(port, "GET", path, "", "").await;
            assert_eq!(status, 401, "{path}");
            assert!(head.to_ascii_lowercase().contains("www-authenticate: basic"), "{head}");
            let wrong = "Authorization: Basic YWI6Y2U=\r\n";
            assert_eq!(send(port, "GET", path, wrong, "").await.0, 401, "{path}");
        }
        let right = "Authorization: Basic YWI6Y2Q=\r\n";
        assert_eq!(send(port, "GET", "/a", right, "").await.0, 200);
        // What is read anew counts from the next request on.
        door.send_replace(Arc::default());
        assert_eq!(send(port, "GET", "/a", "", "").await.0, 200);
    }

    /// Whether the server closes the connection, whatever it says before.
    async fn is_closed(stream: &mut TcpStream) -> bool {
        let mut said = Vec::new();
        let read = tokio::time::timeout(HANG, stream.read_to_end(&mut said));
        read.await.is_ok()
    }

    #[tokio::test]
    async fn who_is_silent_is_cut_and_makes_place_for_the_next() {
        let bounds =
            Bounds { connections: 2, silence: Duration::from_millis(200), handshake: HANG };
        let (port, _door) = start(bounds, Access::default()).await;
        let mut silent = Vec::new();
        for beginning in ["", "GET /a HTT"] {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).await.expect("it listens");
            stream.write_all(beginning.as_bytes()).await.expect("it reads");
            silent.push(stream);
        }
        // Nobody is served before one of them is gone.
        assert_eq!(send(port, "GET", "/a", "", "").await.0, 200);
        for stream in &mut silent {
            assert!(is_closed(stream).await);
        }
    }

    #[tokio::test]
    async fn only_so_many_are_served_at_once() {
        let bounds = Bounds { connections: 1, silence: HANG, handshake: HANG };
        let (port, _door) = start(bounds, Access::default()).await;
        let first = TcpStream::connect(("127.0.0.1", port)).await.expect("it listens");
        let mut second = tokio::spawn(send(port, "GET", "/a", "", ""));
        // The first has the only place for as long as it likes.
        let soon = tokio::time::timeout(Duration::from_millis(200), &mut second);
        assert!(soon.await.is_err());
        drop(first);
        assert_eq!(second.await.expect("no panic").0, 200);
    }

    #[tokio::test]
    async fn a_head_without_end_is_refused() {
        let (port, _door) = start(BOUNDS, Access::default()).await;
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.expect("it listens");
        let line = format!("x-long: {}\r\n", "y".repeat(1000));
        let mut sent = stream.write_all(b"GET /a HTTP/1.1\r\nHost: x\r\n").await;
        for _ in 0..10_000 {
            if sent.is_err() {
                break;
            }
            sent = stream.write_all(line.as_bytes()).await;
        }
        assert!(sent.is_err(), "10 MB of headers were taken");
    }
}
