//! SET, RESET and `SELECT set_config(…)`: what a pooler can keep for a client by itself.

use super::classify::is;
use super::token::{Quotes, Token, Tokens};
use super::word::{Word, word};
use super::{Kind, Leaves, is_readable_encoding};

type Found<'a> = (Kind<'a>, Option<Leaves>);

/// Settings whose value is a list of names, which SET puts into quotes and `set_config` does not.
const LISTS_OF_NAMES: [&[u8]; 5] = [
    b"search_path",
    b"temp_tablespaces",
    b"local_preload_libraries",
    b"session_preload_libraries",
    b"shared_preload_libraries",
];

/// What may stand behind SET.
pub(super) fn set(mut after: Tokens<'_>) -> Found<'_> {
    let mut next = after;
    let mut first = next.next();
    if first.is_some_and(|token| is(token, Word::Session)) {
        let mut scoped = next;
        match scoped.next() {
            Some(token) if is(token, Word::Characteristics) => return unclear(),
            Some(token) if is(token, Word::Authorization) => return role(),
            second => (after, next, first) = (next, scoped, second),
        }
    }
    let Some(Token::Word(text)) = first else {
        return named(after);
    };
    match word(text) {
        Word::Local | Word::Transaction | Word::Constraints => (Kind::SetLocal, None),
        Word::Role => role(),
        Word::Time => match next.next() {
            Some(token) if is(token, Word::Zone) => special(b"timezone", next),
            Some(_) | None => unclear(),
        },
        Word::Names => special(b"client_encoding", next),
        Word::Schema => special(b"search_path", next),
        _ if text.eq_ignore_ascii_case(b"xml") => {
            let option = next.next();
            let is_option =
                matches!(option, Some(Token::Word(word)) if word.eq_ignore_ascii_case(b"option"));
            if is_option { special(b"xmloption", next) } else { unclear() }
        }
        _ => named(after),
    }
}

/// What may stand behind RESET.
pub(super) fn reset(mut after: Tokens<'_>) -> Kind<'_> {
    let mut next = after;
    match next.next() {
        Some(token) if is(token, Word::All) => Kind::ResetAll,
        Some(token) if is(token, Word::Time) => Kind::Reset(b"timezone"),
        Some(token) if is(token, Word::Session) => Kind::Reset(b"session_authorization"),
        Some(token) if is(token, Word::Transaction) => Kind::SetLocal,
        _ => match setting_name(&mut after) {
            Some(name) if ends(after) => Kind::Reset(name),
            // The server will not know it either.
            Some(_) | None => Kind::Other,
        },
    }
}

/// `SELECT [pg_catalog.]set_config('name', 'value', false)` and no more.
pub(super) fn configures(mut after: Tokens<'_>) -> Option<Found<'_>> {
    let mut function = after.next()?;
    if is(function, Word::PgCatalog) {
        after.next().filter(|token| token.is_symbol(b'.'))?;
        function = after.next()?;
    }
    if !is(function, Word::SetConfig) {
        return None;
    }
    let symbol = |after: &mut Tokens<'_>, symbol: u8| {
        after.next().filter(|token| token.is_symbol(symbol)).map(|_| ())
    };
    symbol(&mut after, b'(')?;
    let Token::Text(name, Quotes::Plain) = after.next()? else { return None };
    symbol(&mut after, b',')?;
    let Token::Text(inner, Quotes::Plain) = after.next()? else { return None };
    let value = after.between(after.began, after.ended());
    symbol(&mut after, b',')?;
    let local = after.next()?;
    let session = matches!(local, Token::Word(text) if text.eq_ignore_ascii_case(b"false"));
    symbol(&mut after, b')')?;
    // A bare `E`, `B` or `N` before the quote is part of the value's text.
    let plain = value.first() == Some(&b'\'');
    if !session || !plain || !ends(after) || !is_setting_name(name) {
        return None;
    }
    let lists = LISTS_OF_NAMES.iter().any(|list| name.eq_ignore_ascii_case(list));
    let one_name = |byte: &u8| byte.is_ascii_lowercase() || *byte == b'_';
    if lists && (inner.is_empty() || !inner.iter().all(one_name)) {
        return Some(unclear());
    }
    Some(of_name(name, value))
}

fn unclear<'a>() -> Found<'a> {
    (Kind::Other, Some(Leaves::Setting))
}

fn role<'a>() -> Found<'a> {
    (Kind::Other, Some(Leaves::Role))
}

/// A form without TO or `=`.
fn special<'a>(name: &'static [u8], mut after: Tokens<'a>) -> Found<'a> {
    if name == b"client_encoding" && ends(after) {
        return (Kind::Reset(name), None);
    }
    match value(&mut after) {
        Some(Value::Default) => (Kind::Reset(name), None),
        Some(Value::List(text)) if name == b"timezone" && text.eq_ignore_ascii_case(b"local") => {
            (Kind::Reset(name), None)
        }
        Some(Value::List(text)) => of_name(name, text),
        None => unclear(),
    }
}

/// `name {TO | =} value`.
fn named(mut after: Tokens<'_>) -> Found<'_> {
    let Some(name) = setting_name(&mut after) else { return unclear() };
    match after.next() {
        Some(token) if token.is_symbol(b'=') || is(token, Word::To) => {}
        Some(_) | None => return unclear(),
    }
    match value(&mut after) {
        Some(Value::Default) if is_kept_by_role(name) => role(),
        Some(Value::Default) => (Kind::Reset(name), None),
        Some(Value::List(text)) => of_name(name, text),
        None => unclear(),
    }
}

fn is_kept_by_role(name: &[u8]) -> bool {
    name.eq_ignore_ascii_case(b"role") || name.eq_ignore_ascii_case(b"session_authorization")
}

/// A setting with its value: some are more than a value to be kept.
fn of_name<'a>(name: &'a [u8], value: &'a [u8]) -> Found<'a> {
    let named = |wanted: &[u8]| name.eq_ignore_ascii_case(wanted);
    let bare = value.strip_prefix(b"'").and_then(|text| text.strip_suffix(b"'")).unwrap_or(value);
    if is_kept_by_role(name) {
        return role();
    }
    if named(b"seed") {
        return unclear();
    }
    if name.get(..12).is_some_and(|begin| begin.eq_ignore_ascii_case(b"transaction_"))
        && !named(b"transaction_timeout")
        && !named(b"transaction_buffers")
    {
        // Of the running transaction alone: isolation, read only, deferrable.
        return (Kind::SetLocal, None);
    }
    let on = || [&b"on"[..], b"true", b"yes", b"1"].iter().any(|on| bare.eq_ignore_ascii_case(on));
    let reading = (named(b"standard_conforming_strings") && !on())
        || (named(b"client_encoding") && !is_readable_encoding(bare));
    if reading {
        return (Kind::Other, Some(Leaves::Reading));
    }
    if named(b"search_path") {
        // Tables are then temporary that do not say so.
        let temporary = value.windows(7).any(|part| part.eq_ignore_ascii_case(b"pg_temp"));
        if temporary {
            return (Kind::Other, Some(Leaves::Temporary));
        }
        if value.contains(&b'\\') {
            return unclear();
        }
    }
    (Kind::Set { name, value }, None)
}

enum Value<'a> {
    Default,
    List(&'a [u8]),
}

/// A list of literals up to the end of the statement.
fn value<'a>(after: &mut Tokens<'a>) -> Option<Value<'a>> {
    let mut begin = None;
    let mut default = false;
    let mut count = 0_usize;
    loop {
        let mut token = after.next()?;
        let begin = *begin.get_or_insert(after.began);
        if matches!(token, Token::Symbol(b'+' | b'-')) {
            token = after.next().filter(|token| *token == Token::Number)?;
        }
        match token {
            Token::Word(text) => default |= word(text) == Word::Default,
            Token::Name(_) | Token::Text(..) | Token::Number => {}
            Token::Parameter | Token::Symbol(_) => return None,
        }
        count += 1;
        let text = after.between(begin, after.ended());
        match after.next() {
            None | Some(Token::Symbol(b';')) => {
                return match (default, count) {
                    (true, 1) => Some(Value::Default),
                    (true, _) => None,
                    (false, _) => Some(Value::List(text)),
                };
            }
            Some(Token::Symbol(b',')) => {}
            Some(_) => return None,
        }
    }
}

/// A name, perhaps with dots, or in quotes.
fn setting_name<'a>(after: &mut Tokens<'a>) -> Option<&'a [u8]> {
    let name = match after.next()? {
        Token::Word(_) => {
            let begin = after.began;
            let mut end = after.ended();
            let mut look = *after;
            while look.next().is_some_and(|token| token.is_symbol(b'.')) {
                look.next().filter(|token| matches!(token, Token::Word(_)))?;
                end = look.ended();
                *after = look;
            }
            after.between(begin, end)
        }
        Token::Name(inner) => inner,
        Token::Text(..) | Token::Number | Token::Parameter | Token::Symbol(_) => return None,
    };
    is_setting_name(name).then_some(name)
}

fn is_setting_name(name: &[u8]) -> bool {
    let begins = name.first().is_some_and(|byte| byte.is_ascii_alphabetic() || *byte == b'_');
    let goes_on = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$' | b'.');
    begins && name.iter().all(goes_on)
}

/// Whether the statement ends here.
fn ends(mut after: Tokens<'_>) -> bool {
    after.next().is_none_or(|token| token.is_symbol(b';'))
}
