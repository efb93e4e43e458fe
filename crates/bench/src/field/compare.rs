//! What has changed since an earlier run.

use std::fmt::Write as _;

use super::failover::Outcome;
use super::kinds::Fault;
use super::report::rows;

/// Every row that both runs have: medians of the gap, and how the new one is to the old.
pub(super) fn table(old: &[Outcome], new: &[Outcome]) -> String {
    let mut text = "seconds without an acknowledged write, before and now:\n".to_owned();
    for fault in Fault::ALL {
        let before = rows(old, fault);
        for now in rows(new, fault) {
            let same = before.iter().find(|row| row.of() == now.of());
            let Some(before) = same else { continue };
            let (was, is) = (before.gap.median, now.gap.median);
            let ratio = if was > 0.0 { is / was } else { 1.0 };
            // A writer that cannot fail is as good as it was.
            let _infallible = writeln!(
                text,
                "  {:<18} {:<56} {was:>8.2} {is:>8.2}  {ratio:.2}",
                fault.title(),
                now.title(),
            );
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::field::failover::Case;
    use crate::field::kinds::{Architecture, Mode};

    #[test]
    fn only_what_both_have_is_compared() {
        let outcome = |architecture, gap_s| {
            let case = Case { architecture, mode: Mode::Async, fault: Fault::HostLost, run: 1 };
            Outcome { case, gap_s, healthy_s: 1.0, lost: 0, interleaved: 0, by_hand: false }
        };
        let old = [outcome(Architecture::Patroni, 30.0), outcome(Architecture::Single, 60.0)];
        let new = [outcome(Architecture::Patroni, 15.0), outcome(Architecture::Repmgr, 70.0)];
        let text = table(&old, &new);
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(text.contains("Patroni") && text.trim_end().ends_with("15.00  0.50"), "{text}");
    }
}
