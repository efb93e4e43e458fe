//! From texts to statements, and what each is.

use std::borrow::Cow;

use super::scan::Scan;
use super::settings;
use super::token::{Quotes, Token, Tokens};
use super::word::{Word, word};
use super::{Kind, Leaves, Look};

/// Texts within texts of a DO block that are looked into; deeper is unclear.
const DEPTH_MAX: usize = 4;

/// What a text is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Inside {
    /// What a client sent.
    Query,
    /// PL/pgSQL: some of its words end a statement too.
    Body,
}

/// One statement of a text.
struct One<'a> {
    kind: Kind<'a>,
    leaves: Option<Leaves>,
    commits: bool,
    asks_sequence: bool,
}

/// What a query string does to its session. Linear in its length (pgbench's SELECT takes 0.2 µs);
/// nothing is allocated, but for the quotes within a DO block.
#[must_use]
pub fn look(text: &[u8]) -> Look<'_> {
    let mut look = Look {
        single: false,
        kind: Kind::Empty,
        leaves: None,
        commits: false,
        asks_sequence: false,
    };
    let mut tokens = Tokens::new(text);
    // What of several statements touches settings, and whether a transaction ends among them.
    let mut only_reset_all = true;
    let mut settings = false;
    while let Some(one) = next_statement(&mut tokens, Inside::Query) {
        let first = look.kind == Kind::Empty;
        look.single = first;
        settings |= touches_settings(&one.kind);
        only_reset_all &= match one.kind {
            Kind::ResetAll => true,
            ref other => !touches_settings(other) && !is_transaction(other),
        };
        look.kind = if first { one.kind } else { Kind::Several };
        look.leaves = look.leaves.or(one.leaves);
        look.commits |= one.commits;
        look.asks_sequence |= one.asks_sequence;
    }
    if tokens.unclear {
        // Not even how many statements there are is known.
        let leaves = look.leaves.or(Some(Leaves::Unclear));
        return Look { single: false, kind: Kind::Several, leaves, commits: true, ..look };
    }
    if look.kind == Kind::Several && settings {
        if only_reset_all {
            look.kind = Kind::ResetAll;
        } else {
            look.leaves = look.leaves.or(Some(Leaves::AmongSeveral));
        }
    }
    look
}

/// Whether it changes what is kept for a session: its settings and prepared statements.
fn touches_settings(kind: &Kind<'_>) -> bool {
    match kind {
        Kind::Set { .. }
        | Kind::Reset(_)
        | Kind::ResetAll
        | Kind::DiscardAll
        | Kind::Deallocate(_)
        | Kind::DeallocateAll => true,
        Kind::Empty
        | Kind::Begin
        | Kind::Commit
        | Kind::Rollback
        | Kind::RollbackTo
        | Kind::PrepareTransaction
        | Kind::EndPrepared
        | Kind::SetLocal
        | Kind::Discard
        | Kind::Show
        | Kind::Read
        | Kind::Several
        | Kind::Other => false,
    }
}

fn is_transaction(kind: &Kind<'_>) -> bool {
    matches!(
        kind,
        Kind::Begin
            | Kind::Commit
            | Kind::Rollback
            | Kind::RollbackTo
            | Kind::PrepareTransaction
            | Kind::EndPrepared
    )
}

/// The next statement that is not empty, up to its semicolon.
fn next_statement<'a>(tokens: &mut Tokens<'a>, inside: Inside) -> Option<One<'a>> {
    let first = loop {
        match tokens.next()? {
            Token::Symbol(b';') => {}
            token => break token,
        }
    };
    let after_first = *tokens;
    let first_word = match first {
        Token::Word(text) => Some(word(text)),
        _ => None,
    };
    let scan = Scan::run(tokens, (first, first_word), inside);
    let mut one = One {
        kind: Kind::Other,
        leaves: scan.leaves(),
        commits: false,
        asks_sequence: scan.asks_sequence,
    };
    let Some(first_word) = first_word else {
        if first.is_symbol(b'(') && scan.only_reads() {
            one.kind = Kind::Read;
        }
        return Some(one);
    };
    match first_word {
        Word::Select => match settings::configures(after_first) {
            Some((kind, leaves)) => (one.kind, one.leaves) = (kind, leaves),
            None if scan.only_reads() => one.kind = Kind::Read,
            None => {}
        },
        Word::Values | Word::Table | Word::With if scan.only_reads() => one.kind = Kind::Read,
        first => of_word(&mut one, first, after_first, inside),
    }
    Some(one)
}

/// Statements that are told by their first words.
fn of_word<'a>(one: &mut One<'a>, first: Word, after: Tokens<'a>, inside: Inside) {
    let (kind, leaves) = match first {
        Word::Begin => (Kind::Begin, None),
        Word::Start if next_word(after) == Word::Transaction => (Kind::Begin, None),
        Word::Commit | Word::End => {
            one.commits = true;
            let prepared = next_word(after) == Word::Prepared;
            (if prepared { Kind::EndPrepared } else { Kind::Commit }, None)
        }
        Word::Rollback | Word::Abort => (rollback(after), None),
        Word::Prepare => {
            let mut words = after;
            let transaction = words.next().is_some_and(|token| is(token, Word::Transaction));
            if transaction && matches!(words.next(), Some(Token::Text(..))) {
                one.commits = true;
                (Kind::PrepareTransaction, None)
            } else {
                (Kind::Other, Some(Leaves::PreparedStatement))
            }
        }
        Word::Set => settings::set(after),
        Word::Reset => settings::reset(after),
        Word::Discard if next_word(after) == Word::All => (Kind::DiscardAll, None),
        Word::Discard => (Kind::Discard, None),
        Word::Deallocate => (deallocate(after), None),
        Word::Listen => (Kind::Other, Some(Leaves::Listen)),
        Word::Load => (Kind::Other, Some(Leaves::Library)),
        Word::Show => (Kind::Show, None),
        // The texts of a body are looked into in any case.
        Word::Do if inside == Inside::Query => (Kind::Other, do_block(after)),
        _ => (Kind::Other, None),
    };
    one.kind = kind;
    one.leaves = one.leaves.or(leaves);
}

pub(super) fn is(token: Token<'_>, wanted: Word) -> bool {
    matches!(token, Token::Word(text) if word(text) == wanted)
}

/// The class of the next token, if that is a word.
fn next_word(mut tokens: Tokens<'_>) -> Word {
    match tokens.next() {
        Some(Token::Word(text)) => word(text),
        _ => Word::Name,
    }
}

fn rollback(mut after: Tokens<'_>) -> Kind<'static> {
    let mut next = next_word(after);
    if matches!(next, Word::Work | Word::Transaction) {
        after.next();
        next = next_word(after);
    }
    match next {
        Word::To => Kind::RollbackTo,
        Word::Prepared => Kind::EndPrepared,
        _ => Kind::Rollback,
    }
}

/// DEALLOCATE [PREPARE] {name | ALL}.
fn deallocate(mut after: Tokens<'_>) -> Kind<'_> {
    let ends = |tokens: &mut Tokens<'_>| tokens.next().is_none_or(|token| token.is_symbol(b';'));
    let mut name = after.next();
    if name.is_some_and(|token| is(token, Word::Prepare)) && !ends(&mut after.clone()) {
        name = after.next();
    }
    let text = after.between(after.began, after.ended());
    match name {
        Some(token) if is(token, Word::All) => Kind::DeallocateAll,
        Some(Token::Word(_) | Token::Name(_)) => Kind::Deallocate(text),
        Some(_) | None => Kind::Other,
    }
}

/// `DO [LANGUAGE name] 'code' [LANGUAGE name]`.
fn do_block(mut after: Tokens<'_>) -> Option<Leaves> {
    let mut leaves = None;
    while let Some(token) = after.next().filter(|token| !token.is_symbol(b';')) {
        let found = match token {
            token if is(token, Word::Language) => {
                let name = match after.next() {
                    Some(Token::Word(name) | Token::Name(name) | Token::Text(name, _)) => name,
                    Some(_) | None => &[],
                };
                (word(name) != Word::PlpgsqlOrSql).then_some(Leaves::Unclear)
            }
            Token::Text(text, quotes) => of_body(text, quotes, 0),
            _ => None,
        };
        leaves = leaves.or(found);
    }
    leaves
}

/// What a text of PL/pgSQL leaves, and the texts in it, any of which it may execute.
fn of_body(text: &[u8], quotes: Quotes, depth: usize) -> Option<Leaves> {
    if depth > DEPTH_MAX || quotes == Quotes::Escaped {
        return Some(Leaves::Unclear);
    }
    let text = match quotes {
        Quotes::Plain if text.contains(&b'\'') => Cow::Owned(undoubled(text)),
        Quotes::Plain | Quotes::Escaped | Quotes::Dollar => Cow::Borrowed(text),
    };
    let mut leaves = None;
    let mut tokens = Tokens::new(&text);
    while let Some(one) = next_statement(&mut tokens, Inside::Body) {
        let sets = touches_settings(&one.kind).then_some(Leaves::Setting);
        leaves = leaves.or(one.leaves).or(sets);
    }
    if tokens.unclear {
        leaves = leaves.or(Some(Leaves::Unclear));
    }
    let mut tokens = Tokens::new(&text);
    let mut raises = false;
    while let Some(token) = tokens.next().filter(|_| leaves.is_none()) {
        match token {
            Token::Text(inner, quotes) if !raises => leaves = of_body(inner, quotes, depth + 1),
            Token::Symbol(b';') => raises = false,
            token => raises |= is(token, Word::Raise),
        }
    }
    leaves
}

/// A text whose quotes are doubled, as it reads.
fn undoubled(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut bytes = text.iter();
    while let Some(byte) = bytes.next() {
        plain.push(*byte);
        if *byte == b'\'' {
            bytes.next();
        }
    }
    plain
}
