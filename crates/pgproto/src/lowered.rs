//! Who asks for `synchronous_commit` below `on`: such commits are acknowledged before a standby has
//! them (I1). PostgreSQL shows no session's settings to another session, but a relay sees them set.
//!
//! This reads the words of a statement, not its meaning, and errs to "no": what a `DO` block or a
//! function sets, what is built from pieces or written with escapes, is not seen.

use crate::wire::Startup;

/// The values below `on`, in any case; the last three are other spellings of `off`.
pub const BELOW_ON: [&str; 6] = ["off", "local", "remote_write", "false", "no", "0"];

const SETTING: &[u8] = b"synchronous_commit";
/// Where the underscore stands in it.
const UNDERSCORE: usize = 11;
/// Parameters of a statement that [`refusal`] gives a type to.
const PARAMETERS_MAX: usize = 100;
/// The type `text`.
const TEXT_TYPE: u32 = 25;

/// Whether a session that begins so has it below `on`, whatever its role says.
#[must_use]
pub fn startup_lowers(startup: &Startup) -> bool {
    let options = startup.parameter("options").unwrap_or_default();
    // The server takes the options first, then the parameters, and the last value counts.
    let in_options = option_settings(options).into_iter();
    let parameters = startup.parameters.iter().map(|(name, value)| (name.clone(), value.clone()));
    let mut set = in_options.chain(parameters).filter(|(name, _)| is_setting(name.as_bytes()));
    set.next_back().is_some_and(|(_, value)| is_below_on(value.as_bytes()))
}

/// The settings of `-c name=value` and `--name=value`, split as the server splits them.
#[must_use]
pub fn option_settings(options: &str) -> Vec<(String, String)> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut chars = options.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => word.extend(chars.next()),
            c if c.is_ascii_whitespace() => words.push(std::mem::take(&mut word)),
            c => word.push(c),
        }
    }
    words.push(word);
    words.retain(|word| !word.is_empty());
    let mut settings = Vec::new();
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        let setting = match (word.strip_prefix("--"), word.strip_prefix("-c")) {
            (Some(long), _) => Some(long.to_owned()),
            (None, Some("")) => words.next(),
            (None, Some(short)) => Some(short.to_owned()),
            (None, None) => None,
        };
        if let Some((name, value)) = setting.as_ref().and_then(|s| s.split_once('=')) {
            settings.push((name.replace('-', "_"), value.to_owned()));
        }
    }
    settings
}

/// Whether a statement, or one of several, sets it below `on`: by `SET`, by `ALTER … SET` and
/// `CREATE … SET` for later sessions, or by `set_config` with a value below `on` or one that is not
/// a literal.
#[must_use]
pub fn statement_lowers(sql: &[u8]) -> bool {
    if !mentions(sql) {
        return false;
    }
    let tokens: Vec<Token<'_>> = Tokens { rest: sql }.collect();
    tokens.split(|token| *token == Token::Symbol(b';')).any(one_lowers)
}

/// A quick look, which nearly every statement ends with.
fn mentions(sql: &[u8]) -> bool {
    memchr::memchr_iter(b'_', sql).any(|at| {
        let begin = at.checked_sub(UNDERSCORE);
        let word = begin.and_then(|begin| sql.get(begin..begin + SETTING.len()));
        word.is_some_and(is_setting)
    })
}

fn one_lowers(tokens: &[Token<'_>]) -> bool {
    let word = |at: usize, wanted: &str| tokens.get(at).is_some_and(|t| t.is_word(wanted));
    if word(0, "set") && sets_below_on(&tokens[1..]) {
        return true;
    }
    let later = word(0, "alter") || word(0, "create");
    (0..tokens.len()).any(|at| {
        (later && word(at, "set") && sets_below_on(&tokens[at + 1..]))
            || (word(at, "set_config") && configures_below_on(&tokens[at + 1..]))
    })
}

/// `[SESSION|LOCAL] synchronous_commit {TO|=} value`.
fn sets_below_on(tokens: &[Token<'_>]) -> bool {
    let scoped = tokens.first().is_some_and(|t| t.is_word("session") || t.is_word("local"));
    let [Token::Word(name) | Token::Name(name), is, value, ..] = &tokens[usize::from(scoped)..]
    else {
        return false;
    };
    let assigns = is.is_word("to") || *is == Token::Symbol(b'=');
    let value = match value {
        Token::Word(value) | Token::Name(value) | Token::Text(value) => *value,
        Token::Symbol(_) => return false,
    };
    is_setting(name) && assigns && is_below_on(value)
}

/// `('synchronous_commit', value, …`.
fn configures_below_on(tokens: &[Token<'_>]) -> bool {
    let [Token::Symbol(b'('), Token::Text(name), Token::Symbol(b','), value, after, ..] = tokens
    else {
        return false;
    };
    let literal = match (value, after) {
        (Token::Text(value), Token::Symbol(b',' | b':')) => Some(*value),
        _ => None,
    };
    is_setting(name) && literal.is_none_or(is_below_on)
}

fn is_setting(name: &[u8]) -> bool {
    name.eq_ignore_ascii_case(SETTING)
}

/// Whether a value of `synchronous_commit` is below `on`.
#[must_use]
pub fn is_below_on(value: &[u8]) -> bool {
    BELOW_ON.iter().any(|below| value.eq_ignore_ascii_case(below.as_bytes()))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token<'a> {
    /// A keyword, a name, a number, `$1`.
    Word(&'a [u8]),
    /// A name in double quotes.
    Name(&'a [u8]),
    /// A text in single or dollar quotes, escapes as they are.
    Text(&'a [u8]),
    /// Anything else, one byte.
    Symbol(u8),
}

impl Token<'_> {
    fn is_word(&self, wanted: &str) -> bool {
        matches!(self, Token::Word(word) if word.eq_ignore_ascii_case(wanted.as_bytes()))
    }
}

/// The words of a text of SQL, without blanks and comments. What is not closed ends with the text.
struct Tokens<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Tokens<'a> {
    type Item = Token<'a>;

    fn next(&mut self) -> Option<Token<'a>> {
        loop {
            let first = *self.rest.first()?;
            match (first, self.rest.get(1)) {
                (b'-', Some(b'-')) => {
                    let end = self.rest.iter().position(|byte| *byte == b'\n');
                    self.take(end.unwrap_or(self.rest.len()));
                }
                (b'/', Some(b'*')) => self.skip_comment(),
                (b'\'', _) => return Some(Token::Text(self.quoted(b'\'', false))),
                (b'"', _) => return Some(Token::Name(self.quoted(b'"', false))),
                (b'e' | b'E', Some(b'\'')) => {
                    self.take(1);
                    return Some(Token::Text(self.quoted(b'\'', true)));
                }
                (b'$', _) => return Some(self.dollar()),
                _ if is_in_word(first) => return Some(Token::Word(self.word())),
                _ if first.is_ascii_whitespace() || first == 0 => _ = self.take(1),
                _ => return self.take(1).first().copied().map(Token::Symbol),
            }
        }
    }
}

impl<'a> Tokens<'a> {
    fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.rest.split_at(count.min(self.rest.len()));
        self.rest = rest;
        taken
    }

    fn word(&mut self) -> &'a [u8] {
        let end = self.rest.iter().position(|byte| !is_in_word(*byte));
        self.take(end.unwrap_or(self.rest.len()))
    }

    /// Comments nest.
    fn skip_comment(&mut self) {
        let mut depth = 0_usize;
        while let Some(two) = self.rest.get(..2) {
            match two {
                b"/*" => depth += 1,
                b"*/" => depth -= 1,
                _ => {
                    self.take(1);
                    continue;
                }
            }
            self.take(2);
            if depth == 0 {
                return;
            }
        }
        self.rest = &[];
    }

    /// From a quote to its end; a doubled one does not end it, nor one behind a backslash where
    /// that escapes.
    fn quoted(&mut self, quote: u8, backslash: bool) -> &'a [u8] {
        let mut at = 1;
        while let Some(byte) = self.rest.get(at) {
            let doubled = *byte == quote && self.rest.get(at + 1) == Some(&quote);
            if doubled || (backslash && *byte == b'\\') {
                at += 1;
            } else if *byte == quote {
                break;
            }
            at += 1;
        }
        let taken = self.take(at + 1);
        taken.get(1..at).unwrap_or_default()
    }

    /// `$1`, or a text between two equal `$tag$`.
    fn dollar(&mut self) -> Token<'a> {
        let tag_bytes = self.rest[1..].iter().position(|byte| !is_in_word(*byte) || *byte == b'$');
        let tag_end = tag_bytes.map(|bytes| bytes + 1).filter(|at| self.rest[*at] == b'$');
        let Some(tag) = tag_end.map(|at| &self.rest[..=at]) else {
            return Token::Word(self.word());
        };
        if tag.get(1).is_some_and(u8::is_ascii_digit) {
            return Token::Word(self.word());
        }
        self.take(tag.len());
        let end = self.rest.windows(tag.len()).position(|window| window == tag);
        let text = self.take(end.unwrap_or(self.rest.len()));
        self.take(tag.len());
        Token::Text(text)
    }
}

fn is_in_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$' | 0x80..)
}

/// Whether a whole message of a client (type, length, body) is a Query or Parse that sets it below
/// `on`.
#[must_use]
pub fn message_lowers(message: &[u8]) -> bool {
    parts(message).is_some_and(|(_, sql, _)| statement_lowers(sql))
}

/// What a Query or Parse is made of: a statement's name with its zero byte (nothing in a Query),
/// the text without its own, and what follows.
fn parts(message: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let body = message.get(5..)?;
    let name_bytes = match message[0] {
        b'Q' => 0,
        b'P' => body.iter().position(|byte| *byte == 0)? + 1,
        _ => return None,
    };
    let (name, rest) = body.split_at(name_bytes);
    let end = rest.iter().position(|byte| *byte == 0)?;
    Some((name, &rest[..end], &rest[end + 1..]))
}

/// A message for the server in place of a Query or Parse for which [`message_lowers`] holds: a
/// statement that raises an error. So the server itself keeps the order of its answers, fails the
/// transaction and skips to the next Sync. The texts must not contain a dollar sign.
#[must_use]
pub fn refusal(message: &[u8], sqlstate: &str, text: &str, hint: &str) -> Vec<u8> {
    let (name, sql, after) = parts(message).unwrap_or_default();
    let quoted = |text: &str| text.replace('\'', "''");
    let raising = format!(
        "DO $pgherd$BEGIN RAISE EXCEPTION USING ERRCODE = '{}', MESSAGE = '{}', HINT = '{}'; \
         END$pgherd$",
        quoted(sqlstate),
        quoted(text),
        quoted(hint)
    );
    let mut body = [name, raising.as_bytes(), &[0]].concat();
    if message.first() == Some(&b'P') {
        // As many parameters as the client will bind.
        let types = parameter_types(sql, after);
        body.extend(u16::try_from(types.len()).unwrap_or_default().to_be_bytes());
        types.iter().for_each(|kind| body.extend(kind.to_be_bytes()));
    }
    let length = u32::try_from(body.len() + 4).unwrap_or(u32::MAX);
    let tag = message.first().copied().unwrap_or(b'Q');
    [&[tag], &length.to_be_bytes()[..], &body].concat()
}

/// The types of a statement's parameters as its Parse declares them; `text` for those that it
/// leaves open.
fn parameter_types(sql: &[u8], declared: &[u8]) -> Vec<u32> {
    let declared = declared.get(2..).unwrap_or_default().chunks_exact(4);
    let mut types: Vec<u32> = declared
        .map(|b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]))
        .take(PARAMETERS_MAX)
        .collect();
    let number = |token: Token<'_>| match token {
        Token::Word([b'$', digits @ ..]) => std::str::from_utf8(digits).ok()?.parse().ok(),
        _ => None,
    };
    let highest: usize = Tokens { rest: sql }.filter_map(number).max().unwrap_or(0);
    types.resize(types.len().max(highest.min(PARAMETERS_MAX)), 0);
    types.into_iter().map(|kind| if kind == 0 { TEXT_TYPE } else { kind }).collect()
}

#[cfg(test)]
#[path = "lowered_tests.rs"]
mod tests;
