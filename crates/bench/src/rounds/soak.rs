//! `pgherd-bench soak`: rounds for hours, in one cluster whose programs must not grow.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::growth::Growth;
use super::state::State;
use super::{Of, PACES, place, round};
use crate::stage::{self, Stage};
use crate::{demo, say};

/// Options of `soak`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// How long
    #[arg(long, value_parser = hours)]
    hours: f64,
    #[command(flatten)]
    of: Of,
}

fn hours(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(hours) if hours > 0.0 && hours <= 10_000.0 => Ok(hours),
        _ => Err("more than 0, at most 10000".to_owned()),
    }
}

/// Runs it, and prints the report; `false` if a round failed or a program grew.
///
/// # Errors
/// It cannot be had here.
pub(crate) async fn run(options: &Options) -> anyhow::Result<bool> {
    let program = demo::program(options.of.pgherd.as_ref())?;
    let (scratch, directory) = place(options.of.dir.as_ref(), "soak")?;
    let settings = options.of.settings();
    let state = State::begin(&directory, false, options.of.seed, settings)?;
    let plan = stage::plan(&program, directory, settings, true)?;
    let stage = Box::pin(Stage::start(&plan, PACES, 0)).await?;
    let mut soak = Soak { stage, state, growth: Growth::default() };
    let length = Duration::from_secs_f64(options.hours * 3600.0);
    let ran = Box::pin(soak.last(Instant::now() + length)).await;
    let good = ran.is_ok() && soak.is_good();
    let (table, object) = (soak.state.table(), soak.object());
    drop(soak);
    if let Some(scratch) = scratch.filter(|_| !good) {
        say(&format!("everything is kept in {}", scratch.keep().display()));
    }
    ran?;
    print!("{table}");
    println!("{object}");
    Ok(good)
}

struct Soak {
    stage: Stage,
    state: State,
    growth: Growth,
}

impl Soak {
    /// Round after round until then, or until something is wrong.
    async fn last(&mut self, end: Instant) -> anyhow::Result<()> {
        while Instant::now() < end && self.state.is_good() {
            Box::pin(round(&mut self.stage, &[], None, &mut self.state)).await;
            self.growth.look(&self.stage.cluster);
            if self.state.is_good() {
                self.stage.close().await?;
            }
            let left = end.saturating_duration_since(Instant::now()).as_secs() / 60;
            let trouble = self.state.trouble.as_deref().unwrap_or("nothing wrong");
            say(&format!("  {trouble}, growing: {:?}; {left} min left", self.growth.growing()));
        }
        Ok(())
    }

    fn is_good(&self) -> bool {
        self.state.is_good() && self.growth.growing().is_empty()
    }

    fn object(&self) -> Value {
        let mut object = self.state.object();
        object["ok"] = json!(self.is_good());
        object["acknowledged"] = json!(self.stage.books.ledger.lock().acknowledged_count());
        object["growth"] = self.growth.object();
        object
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hours_are_more_than_none() {
        assert_eq!(hours("0.5"), Ok(0.5));
        for wrong in ["0", "-1", "ten", "1e9", "NaN"] {
            assert!(hours(wrong).is_err(), "{wrong}");
        }
    }
}
