//! One member, asked again and again for its view of the cluster.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use api::client::ClientError;
use api::view::VIEW_PATH;
use api::{RestClient, view};
use route::Word;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};
use types::{ClusterView, NotTold, RestAddress, Revision, ToldView};

/// How long the member holds its answer back while there is no news.
const WAIT: Duration = Duration::from_secs(10);
/// An answer that is not held back has come within this; one that is, as long after the wait.
const ANSWER_LIMIT: Duration = Duration::from_secs(3);
/// After a question that failed; it doubles up to the second one.
const PAUSE: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// A member that has too many to wait for answers at once, and is not asked more often than this.
const PACE: Duration = Duration::from_secs(1);

const _: () = assert!(WAIT.as_secs() <= view::WAIT_MAX.as_secs());

/// What a member told; nothing if it did not answer.
pub(super) struct Heard {
    pub(super) from: RestAddress,
    pub(super) told: Option<(Arc<ClusterView>, Word)>,
}

/// Why a member tells nothing.
#[derive(Debug, thiserror::Error)]
enum Unheard {
    #[error("it does not answer")]
    Client(#[from] ClientError),
    #[error("it answers GET {VIEW_PATH} with status {0}")]
    Status(u16),
    #[error("it is no agent of pgherd, or an older one: GET {VIEW_PATH} is answered otherwise")]
    Form(#[from] serde_json::Error),
    #[error("what it tells is not for us")]
    NotTold(#[from] NotTold),
}

/// What was told last: the revision, and whether it was called fresh.
type Last = Option<(Revision, bool)>;

/// Asks one member.
pub(super) struct Asker {
    pub(super) scope: String,
    pub(super) member: RestAddress,
    pub(super) rest: RestClient,
}

impl Asker {
    /// Asks until it is dropped, or nobody hears.
    pub(super) async fn ask_on(self, hearing: mpsc::Sender<Heard>) {
        let (mut last, mut pause, mut well) = (None, PAUSE, true);
        loop {
            let began = Instant::now();
            let asked = self.ask(last).await;
            self.say(&asked, well);
            well = asked.is_ok();
            let (told, rest) = match asked {
                Ok((view, told)) => {
                    let now = Some((told.revision, told.fresh));
                    let hurries = now == last && began.elapsed() < PACE;
                    (last, pause) = (now, PAUSE);
                    let rest = if hurries { PACE } else { Duration::ZERO };
                    (Some((Arc::new(view), word(&told))), rest)
                }
                Err(_) => {
                    let rest = pause;
                    (last, pause) = (None, (pause * 2).min(PAUSE_MAX));
                    (None, rest)
                }
            };
            let heard = Heard { from: self.member.clone(), told };
            if hearing.send(heard).await.is_err() {
                return;
            }
            if !rest.is_zero() {
                sleep(rest).await;
            }
        }
    }

    async fn ask(&self, last: Last) -> Result<(ClusterView, ToldView), Unheard> {
        let (path, limit) = match last {
            None => (VIEW_PATH.to_owned(), ANSWER_LIMIT),
            Some((after, fresh)) => {
                let wait = WAIT.as_secs();
                let path = format!("{VIEW_PATH}?after={after}&fresh={fresh}&wait={wait}");
                (path, WAIT + ANSWER_LIMIT)
            }
        };
        let asked = self.rest.request("GET", &self.member, &path, None, None, limit);
        let (status, body) = asked.await?;
        if status != 200 {
            return Err(Unheard::Status(status));
        }
        let told: ToldView = serde_json::from_slice(&body)?;
        Ok((told.view(&self.scope)?, told))
    }

    /// Says when the member begins to answer, and when it ends to.
    fn say(&self, asked: &Result<(ClusterView, ToldView), Unheard>, well: bool) {
        let (scope, member) = (&self.scope, &self.member);
        match asked {
            Ok((_, told)) if !well => {
                let name = &told.told_by.name;
                tracing::info!(%scope, %member, %name, "the member tells of the cluster");
            }
            Err(error) if well => {
                let error = chain(error);
                tracing::warn!(%scope, %member, error, "a member tells nothing of the cluster");
            }
            Ok(_) | Err(_) => {}
        }
    }
}

/// What stands behind it.
fn word(told: &ToldView) -> Word {
    match (told.fresh, told.is_leaders()) {
        (true, _) => Word::Current,
        (false, true) => Word::Leaders,
        (false, false) => Word::Remembered,
    }
}

/// An error and its causes, in one line.
fn chain(error: &Unheard) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
