//! The lines that agent and guard exchange. The first word is the protocol's version, so that an
//! upgraded agent and the guard of its predecessor notice when they do not understand each other.
//! Within a version answers only grow at their end, which an older reader leaves unread.

use crate::harden::Refused;

/// The longest line of either side, newline included.
pub(crate) const LINE_MAX: usize = 96;

const VERSION: &str = "1";

/// What an agent asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Request {
    /// Kill at this instant (boot-time milliseconds) unless told a later one before.
    Deadline(u64),
    /// There is nothing to kill.
    StandDown,
    /// Only answer.
    Ping,
    /// End, if there is no deadline.
    Exit,
}

impl Request {
    pub(crate) fn parse(line: &str) -> Option<Request> {
        let mut words = line.split_ascii_whitespace();
        if words.next()? != VERSION {
            return None;
        }
        let request = match (words.next()?, words.next()) {
            ("deadline", Some(at)) => Request::Deadline(at.parse().ok()?),
            ("standdown", None) => Request::StandDown,
            ("ping", None) => Request::Ping,
            ("exit", None) => Request::Exit,
            _ => return None,
        };
        words.next().is_none().then_some(request)
    }
}

impl std::fmt::Display for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Request::Deadline(at) => writeln!(f, "{VERSION} deadline {at}"),
            Request::StandDown => writeln!(f, "{VERSION} standdown"),
            Request::Ping => writeln!(f, "{VERSION} ping"),
            Request::Exit => writeln!(f, "{VERSION} exit"),
        }
    }
}

/// What the guard says back: whether it did as asked, and how things stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// Whether the request was carried out; `false` while it kills, or for an exit with a deadline.
    pub accepted: bool,
    /// The deadline in force, in boot-time milliseconds.
    pub deadline: Option<u64>,
    /// The guard's process id.
    pub pid: u32,
    /// What it was not permitted; `None` from a guard of an older binary, which does not say.
    pub refused: Option<Refused>,
}

impl Answer {
    pub(crate) fn parse(line: &str) -> Option<Answer> {
        let mut words = line.split_ascii_whitespace();
        if words.next()? != VERSION {
            return None;
        }
        let accepted = match words.next()? {
            "ok" => true,
            "refused" => false,
            _ => return None,
        };
        let deadline = match words.next()? {
            "none" => None,
            at => Some(at.parse().ok()?),
        };
        let pid = words.next()?.parse().ok()?;
        Some(Answer { accepted, deadline, pid, refused: words.next().and_then(parse_refused) })
    }
}

/// `refused=MEMORY,PRIORITY,OOM`: error numbers, 0 for what is in force.
fn parse_refused(word: &str) -> Option<Refused> {
    let mut numbers = word.strip_prefix("refused=")?.split(',').map(str::parse::<i32>);
    let mut next = || numbers.next()?.ok();
    let in_force = |number: i32| (number != 0).then_some(number);
    Some(Refused {
        memory: in_force(next()?),
        priority: in_force(next()?),
        oom_score: in_force(next()?),
    })
}

impl std::fmt::Display for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let word = if self.accepted { "ok" } else { "refused" };
        match self.deadline {
            Some(at) => write!(f, "{VERSION} {word} {at} {}", self.pid)?,
            None => write!(f, "{VERSION} {word} none {}", self.pid)?,
        }
        if let Some(refused) = self.refused {
            let number = |number: Option<i32>| number.unwrap_or(0);
            let (memory, priority) = (number(refused.memory), number(refused.priority));
            write!(f, " refused={memory},{priority},{}", number(refused.oom_score))?;
        }
        writeln!(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        for request in
            [Request::Deadline(u64::MAX), Request::StandDown, Request::Ping, Request::Exit]
        {
            let line = request.to_string();
            assert!(line.len() <= LINE_MAX);
            assert_eq!(Request::parse(&line), Some(request));
        }
        let refused = Refused { memory: Some(4095), priority: None, oom_score: Some(4095) };
        for (deadline, refused) in [(None, None), (Some(u64::MAX), Some(refused))] {
            let accepted = deadline.is_some();
            let answer = Answer { accepted, deadline, pid: u32::MAX, refused };
            let line = answer.to_string();
            assert!(line.len() <= LINE_MAX);
            assert_eq!(Answer::parse(&line), Some(answer));
        }
    }

    #[test]
    fn older_and_newer_answers_of_this_version_are_understood() {
        let old = Answer::parse("1 ok 7 5\n").expect("an answer");
        assert_eq!((old.deadline, old.refused), (Some(7), None));
        let newer = Answer::parse("1 ok none 5 refused=0,0,0 more\n").expect("an answer");
        assert_eq!(newer.refused, Some(Refused::default()));
        let strange = Answer::parse("1 ok none 5 refused=x\n").expect("an answer");
        assert_eq!(strange.refused, None);
    }

    #[test]
    fn anything_else_is_not_understood() {
        for line in ["", "1", "2 ping", "1 deadline", "1 deadline -5", "1 ping x", "1 exit now"] {
            assert_eq!(Request::parse(line), None, "{line}");
        }
        for line in ["", "1 ok", "1 ok none", "2 ok none 5", "1 maybe none 5"] {
            assert_eq!(Answer::parse(line), None, "{line}");
        }
    }
}
