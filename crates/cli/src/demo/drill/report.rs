//! The figures of a drill.

use lab::ledger::Ledger;
use serde::Serialize;

use super::Fault;
use crate::demo::screen::{Screen, new_table};

/// One fault and what it did.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(in crate::demo) struct Step {
    /// What was done.
    pub(in crate::demo) fault: Fault,
    /// Why it was not done, where it cannot be done; that is no failure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::demo) skipped: Option<String>,
    /// How it was done, where there is more than one way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::demo) how: Option<String>,
    /// What has to follow, if that is not a hand-over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::demo) expected: Option<&'static str>,
    /// The primary at that time.
    pub(in crate::demo) node: Option<String>,
    /// When it struck, in milliseconds since the machine was booted.
    pub(in crate::demo) at_boot_ms: Option<u64>,
    /// When the first insert through the proxy was acknowledged on a higher timeline, on the same
    /// clock; nothing if there was none.
    pub(in crate::demo) handed_over_at_boot_ms: Option<u64>,
    /// From the fault to the next acknowledgement, through the proxy, of an insert sent after it.
    pub(in crate::demo) seconds_to_next_ack: Option<f64>,
    /// The longest time without an acknowledgement from the fault to the end of the step. A fault
    /// may strike later than it is injected: backends run on, a lease has to end.
    pub(in crate::demo) longest_gap_seconds: f64,
    /// Acknowledged identifiers that are not in the table; nothing if it could not be read.
    pub(in crate::demo) missing: Option<usize>,
    /// Acknowledgements that must not be.
    pub(in crate::demo) interleaved: usize,
    /// From the fault to all members healthy; nothing if they did not get there.
    pub(in crate::demo) seconds_to_healthy: Option<f64>,
    /// What did not go as it should.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::demo) note: Option<String>,
}

impl Step {
    pub(super) fn new(fault: Fault) -> Step {
        Step {
            fault,
            skipped: None,
            how: None,
            expected: fault.is_without_hand_over().then_some("no-hand-over"),
            node: None,
            at_boot_ms: None,
            handed_over_at_boot_ms: None,
            seconds_to_next_ack: None,
            longest_gap_seconds: 0.0,
            missing: None,
            interleaved: 0,
            seconds_to_healthy: None,
            note: None,
        }
    }

    pub(super) fn add_note(&mut self, text: &str) {
        self.note = Some(match self.note.take() {
            Some(before) => format!("{before}; {text}"),
            None => text.to_owned(),
        });
    }

    /// Whether everything went as it should, as far as it could be tried.
    pub(super) fn is_ok(&self) -> bool {
        self.skipped.is_some() || self.went_well()
    }

    fn went_well(&self) -> bool {
        self.seconds_to_next_ack.is_some()
            && self.missing == Some(0)
            && self.interleaved == 0
            && self.seconds_to_healthy.is_some()
            && self.note.is_none()
    }

    fn verdict(&self) -> &'static str {
        match (&self.skipped, self.is_ok()) {
            (Some(_), _) => "skipped",
            (None, true) => "good",
            (None, false) => "BAD",
        }
    }

    /// One line for people.
    pub(super) fn line(&self) -> String {
        if let Some(why) = &self.skipped {
            return format!("  skipped: {why}");
        }
        let remarks = self.how.iter().chain(&self.note);
        let note: String = remarks.map(|remark| format!("; {remark}")).collect();
        format!(
            "  {}: next acknowledgement after {}, longest gap {:.3} s, missing {}, interleaved \
             {}, healthy after {}{note}",
            self.verdict(),
            seconds(self.seconds_to_next_ack),
            self.longest_gap_seconds,
            count(self.missing),
            self.interleaved,
            seconds(self.seconds_to_healthy),
        )
    }
}

fn seconds(value: Option<f64>) -> String {
    value.map_or_else(|| "never".to_owned(), |value| format!("{value:.3} s"))
}

fn count(value: Option<usize>) -> String {
    value.map_or_else(|| "unknown".to_owned(), |value| value.to_string())
}

/// The whole drill.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(in crate::demo) struct Report {
    /// Nothing acknowledged was lost, nothing interleaved, every member came back.
    pub(in crate::demo) ok: bool,
    /// The faults.
    pub(in crate::demo) steps: Vec<Step>,
    /// Faults that were not tried any more after one from which the cluster did not come back.
    pub(in crate::demo) skipped: usize,
    /// Acknowledged inserts, of all writers.
    pub(in crate::demo) acknowledged: usize,
    /// Inserts whose answer never came.
    pub(in crate::demo) unknown: u64,
    /// Acknowledged inserts that were missing at some time.
    pub(in crate::demo) missing: usize,
    /// Acknowledgements that must not be.
    pub(in crate::demo) interleaved: usize,
    /// Entries that the ledger itself lost.
    pub(in crate::demo) ledger_gaps: u64,
}

impl Report {
    pub(super) fn new(steps: Vec<Step>, wanted: usize, ledger: &Ledger, missing: usize) -> Report {
        let interleaved = ledger.interleaved().len();
        let skipped = wanted.saturating_sub(steps.len());
        let ledger_gaps = ledger.gaps();
        let clean = missing == 0 && interleaved == 0 && ledger_gaps == 0 && skipped == 0;
        Report {
            ok: clean && steps.iter().all(Step::is_ok),
            skipped,
            acknowledged: ledger.acks().len(),
            unknown: ledger.unknown_count(),
            missing,
            interleaved,
            ledger_gaps,
            steps,
        }
    }

    /// The table, or the one object as the last line.
    pub(in crate::demo) fn show(&self, screen: &mut Screen) {
        match serde_json::to_value(self) {
            Ok(value) => screen.object(&value),
            Err(error) => screen.note(&format!("the report cannot be written: {error}")),
        }
        screen.text(&self.table());
    }

    fn table(&self) -> String {
        let mut table = new_table(&[
            "fault",
            "next ack",
            "longest gap",
            "missing",
            "interleaved",
            "healthy",
            "",
        ]);
        for step in &self.steps {
            table.add_row(vec![
                step.fault.story().to_owned(),
                seconds(step.seconds_to_next_ack),
                format!("{:.3} s", step.longest_gap_seconds),
                count(step.missing),
                step.interleaved.to_string(),
                seconds(step.seconds_to_healthy),
                step.verdict().to_owned(),
            ]);
        }
        format!(
            "{table}\n{} inserts acknowledged, {} missing, {} interleaved, {} without an answer, \
             {} ledger entries lost, {} faults not tried\n{}",
            self.acknowledged,
            self.missing,
            self.interleaved,
            self.unknown,
            self.ledger_gaps,
            self.skipped,
            if self.ok { "The drill was passed." } else { "THE DRILL FAILED." },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lab::ledger::Ack;
    use std::time::Duration;

    fn good() -> Step {
        Step {
            seconds_to_next_ack: Some(0.5),
            longest_gap_seconds: 0.6,
            missing: Some(0),
            seconds_to_healthy: Some(9.0),
            ..Step::new(Fault::HostLost)
        }
    }

    fn ledger() -> Ledger {
        let at = |ms| Duration::from_millis(ms);
        let ack = |id, sent, port, timeline| Ack {
            id,
            writer: 0,
            sent: at(sent),
            acked: at(sent + 5),
            port,
            timeline,
        };
        let mut ledger = Ledger::default();
        [ack(1, 0, 10, 1), ack(2, 100, 20, 2), ack(3, 200, 20, 2)]
            .into_iter()
            .for_each(|ack| ledger.acknowledged(ack));
        ledger
    }

    #[test]
    fn only_a_clean_drill_is_ok() {
        assert!(Report::new(vec![good()], 1, &ledger(), 0).ok);
        assert!(!Report::new(vec![good()], 2, &ledger(), 0).ok, "one fault was not tried");
        assert!(!Report::new(vec![good()], 1, &ledger(), 1).ok, "one is missing");
        let bad = [
            Step { seconds_to_next_ack: None, ..good() },
            Step { missing: Some(1), ..good() },
            Step { missing: None, ..good() },
            Step { interleaved: 1, ..good() },
            Step { seconds_to_healthy: None, ..good() },
            Step { note: Some("trouble".to_owned()), ..good() },
        ];
        let skipped = Step { skipped: Some("no root".to_owned()), ..Step::new(Fault::DiskFull) };
        assert!(Report::new(vec![good(), skipped], 2, &ledger(), 0).ok, "it cannot be tried here");
        for step in bad {
            assert!(!Report::new(vec![step.clone()], 1, &ledger(), 0).ok, "{step:?}");
        }
    }

    #[test]
    fn planted_faults_of_the_books_make_it_fail() {
        let mut lost = ledger();
        lost.plant_lost_entry();
        let report = Report::new(vec![good()], 1, &lost, 0);
        assert!(!report.ok && report.ledger_gaps == 1);
        let mut second = ledger();
        let stray = Ack { id: 9, sent: Duration::from_millis(150), ..second.acks()[0] };
        second.acknowledged(Ack { acked: Duration::from_millis(160), ..stray });
        let report = Report::new(vec![good()], 1, &second, 0);
        assert!(!report.ok && report.interleaved == 1);
    }

    #[test]
    fn the_last_line_has_every_figure() {
        let value = serde_json::to_value(Report::new(vec![good()], 1, &ledger(), 0));
        let value = value.expect("it is plain data");
        assert_eq!(value["ok"], true);
        assert_eq!(value["acknowledged"], 3);
        assert_eq!(value["steps"][0]["fault"], "host-lost");
        assert_eq!(value["steps"][0]["seconds_to_next_ack"], 0.5);
        assert_eq!(value["steps"][0]["seconds_to_healthy"], 9.0);
    }
}
