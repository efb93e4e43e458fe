//! What is typed and not shown.

use std::os::fd::BorrowedFd;

use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};

/// A terminal that does not show what is typed, until this is dropped.
pub(crate) struct Hidden<'a> {
    terminal: BorrowedFd<'a>,
    shown: Option<Termios>,
}

impl<'a> Hidden<'a> {
    /// Does nothing where this is no terminal.
    pub(crate) fn begin(terminal: BorrowedFd<'a>) -> Hidden<'a> {
        let Ok(shown) = tcgetattr(terminal) else { return Hidden { terminal, shown: None } };
        let mut silent = shown.clone();
        silent.local_modes.remove(LocalModes::ECHO);
        let set = tcsetattr(terminal, OptionalActions::Flush, &silent);
        Hidden { terminal, shown: set.is_ok().then_some(shown) }
    }
}

impl Drop for Hidden<'_> {
    fn drop(&mut self) {
        if let Some(shown) = &self.shown {
            // There is nobody to tell; the shell sets its own modes.
            tcsetattr(self.terminal, OptionalActions::Flush, shown).ok();
        }
    }
}
