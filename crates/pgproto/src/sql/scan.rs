//! One statement, token by token: the names and pairs of words that matter wherever they stand.

use super::Leaves;
use super::classify::Inside;
use super::token::{Token, Tokens};
use super::word::{Word, word};

/// Tokens of a call of `set_config` that are looked at.
const ARGUMENT_TOKENS_MAX: usize = 64;

/// The token before, as far as it matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Before {
    Word(Word),
    /// In double quotes.
    Name,
    Other,
}

#[derive(Debug)]
pub(super) struct Scan {
    first: Word,
    before: Before,
    /// What stands before the dot before the last name.
    qualifier: Option<Before>,
    after_dot: bool,
    leaves: Option<Leaves>,
    pub(super) asks_sequence: bool,
    reads: bool,
    /// Since CREATE there were only words that may stand before TEMPORARY.
    creating: bool,
    /// The same since INTO.
    into: bool,
    /// How much of ON COMMIT DROP has just been seen.
    on_commit: u8,
    creates_temporary: bool,
    drops_on_commit: bool,
    /// A FOR was there.
    for_seen: bool,
    updates: bool,
    names_settings: bool,
    /// CREATE FUNCTION: what is called in it is not called now.
    function: bool,
    /// Open BEGIN ATOMIC and CASE of such a body, in which a semicolon does not end the statement.
    open: usize,
}

impl Scan {
    /// Reads to the end of the statement that `first` begins, with its semicolon.
    pub(super) fn run(
        tokens: &mut Tokens<'_>,
        (first, first_word): (Token<'_>, Option<Word>),
        inside: Inside,
    ) -> Scan {
        let mut scan = Scan {
            first: first_word.unwrap_or(Word::Name),
            before: Before::Other,
            qualifier: None,
            after_dot: false,
            leaves: None,
            asks_sequence: false,
            reads: true,
            creating: false,
            into: false,
            on_commit: 0,
            creates_temporary: false,
            drops_on_commit: false,
            for_seen: false,
            updates: false,
            names_settings: false,
            function: false,
            open: 0,
        };
        match first_word {
            Some(word) => scan.word(word, tokens),
            None => scan.token(first, tokens),
        }
        if inside == Inside::Body && scan.ends_body_statement() {
            return scan;
        }
        let mut token = tokens.next();
        while let Some(this) = token {
            if scan.open == 0 && this.is_symbol(b';') {
                return scan;
            }
            scan.token(this, tokens);
            if inside == Inside::Body && scan.ends_body_statement() {
                return scan;
            }
            token = tokens.next();
        }
        if scan.open > 0 {
            // Where the function's body ended was perhaps not seen.
            scan.leaves = scan.leaves.or(Some(Leaves::Unclear));
        }
        scan
    }

    pub(super) fn leaves(&self) -> Option<Leaves> {
        let temporary = self.creates_temporary && !self.drops_on_commit;
        let updates = self.updates && self.names_settings;
        let temporary = temporary.then_some(Leaves::Temporary);
        self.leaves.or(temporary).or(updates.then_some(Leaves::Setting))
    }

    /// Whether nothing was there that does more than read.
    pub(super) fn only_reads(&self) -> bool {
        self.reads && self.leaves().is_none()
    }

    /// In PL/pgSQL a statement begins behind these.
    fn ends_body_statement(&self) -> bool {
        matches!(self.before, Before::Word(Word::Begin | Word::Then | Word::Else | Word::Loop))
    }

    fn token(&mut self, token: Token<'_>, tokens: &Tokens<'_>) {
        match token {
            Token::Word(text) => self.word(word(text), tokens),
            Token::Name(text) => {
                self.name(word(text), tokens);
                self.no_pair();
                self.named(Before::Name);
            }
            Token::Symbol(symbol) => {
                self.no_pair();
                if symbol == b'(' && !self.may_open() {
                    self.reads = false;
                }
                self.after_dot = symbol == b'.';
                if self.after_dot {
                    self.qualifier = Some(self.before);
                }
                self.before = Before::Other;
            }
            Token::Text(..) | Token::Number | Token::Parameter => {
                self.no_pair();
                self.after_dot = false;
                self.before = Before::Other;
            }
        }
    }

    fn word(&mut self, word: Word, tokens: &Tokens<'_>) {
        self.name(word, tokens);
        self.pairs(word);
        self.named(Before::Word(word));
    }

    fn named(&mut self, name: Before) {
        if !self.after_dot {
            self.qualifier = None;
        }
        self.after_dot = false;
        self.before = name;
    }

    fn no_pair(&mut self) {
        (self.creating, self.into, self.on_commit) = (false, false, 0);
    }

    /// Whether what stands before a parenthesis may do so in a statement that only reads.
    fn may_open(&self) -> bool {
        let word = match self.before {
            Before::Other => return true,
            Before::Name => return false,
            Before::Word(word) => word,
        };
        let qualified = self.qualifier.is_some_and(|by| by != Before::Word(Word::PgCatalog));
        let grammar = matches!(
            word,
            Word::All
                | Word::As
                | Word::Case
                | Word::Else
                | Word::Harmless
                | Word::On
                | Word::Or
                | Word::Replace
                | Word::Select
                | Word::Then
                | Word::Time
                | Word::Values
                | Word::With
        );
        grammar && !qualified
    }

    /// Names that matter wherever they stand, and in quotes too.
    fn name(&mut self, word: Word, tokens: &Tokens<'_>) {
        match word {
            Word::PgTemp => self.leave(Leaves::Temporary),
            Word::AdvisoryLock if !self.function => self.leave(Leaves::AdvisoryLock),
            Word::ChangesSession if !self.function => self.leave(Leaves::Setting),
            Word::SetConfig if !self.function && self.leaves.is_none() => {
                if !is_local(*tokens) {
                    self.leave(Leaves::Setting);
                }
            }
            Word::Sequence if !self.function => self.asks_sequence = true,
            Word::PgSettings => self.names_settings = true,
            Word::PgCatalog | Word::Harmless => return,
            Word::AdvisoryLock
            | Word::ChangesSession
            | Word::SetConfig
            | Word::Sequence
            | Word::PgOther => {}
            _ => return,
        }
        self.reads = false;
    }

    /// Words that matter together with those before them.
    fn pairs(&mut self, word: Word) {
        let (creating, into) = (self.creating, self.into);
        let on_commit = self.on_commit;
        self.no_pair();
        match word {
            Word::Create => self.creating = true,
            Word::Or | Word::Replace => self.creating = creating,
            Word::Global | Word::Local => (self.creating, self.into) = (creating, into),
            Word::Temporary => {
                self.creates_temporary |= creating;
                if into {
                    self.leave(Leaves::Temporary);
                }
            }
            Word::Into => {
                // INSERT INTO temp names a table.
                self.into = self.before != Before::Word(Word::Writes);
                self.reads = false;
            }
            Word::On => self.on_commit = 1,
            Word::Commit if on_commit == 1 => self.on_commit = 2,
            Word::Drop if on_commit == 2 => self.drops_on_commit = true,
            Word::Function => self.function |= creating,
            Word::Atomic if self.function && self.before == Before::Word(Word::Begin) => {
                self.open += 1;
            }
            Word::Case if self.open > 0 => self.open += 1,
            Word::End => self.open = self.open.saturating_sub(1),
            Word::Hold => {
                let held = self.first == Word::Declare && !self.for_seen;
                if held && self.before == Before::Word(Word::With) {
                    self.leave(Leaves::HeldCursor);
                }
            }
            Word::For => (self.for_seen, self.reads) = (true, false),
            Word::Update => (self.updates, self.reads) = (true, false),
            Word::Uescape if self.before == Before::Name => self.leave(Leaves::Unclear),
            Word::Writes => self.reads = false,
            _ => {}
        }
    }

    fn leave(&mut self, what: Leaves) {
        self.leaves = self.leaves.or(Some(what));
    }
}

/// Whether the arguments of `set_config` that follow end with `true`.
fn is_local(mut tokens: Tokens<'_>) -> bool {
    if !tokens.next().is_some_and(|token| token.is_symbol(b'(')) {
        return false;
    }
    let mut depth = 1_usize;
    let mut commas = 0;
    // Whether since the last comma there was exactly the word `true`.
    let mut last_true = false;
    let mut since_comma = 0;
    for token in tokens.take(ARGUMENT_TOKENS_MAX) {
        since_comma += 1;
        match token {
            Token::Symbol(b'(' | b'[') => depth += 1,
            Token::Symbol(b')' | b']') => {
                depth -= 1;
                if depth == 0 {
                    return commas == 2 && last_true && since_comma == 2;
                }
            }
            Token::Symbol(b',') if depth == 1 => (commas, since_comma) = (commas + 1, 0),
            Token::Symbol(b';') => return false,
            Token::Word(text) => last_true = word(text) == Word::True && depth == 1,
            _ => last_true = false,
        }
    }
    false
}
