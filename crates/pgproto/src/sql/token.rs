//! The words of a text of SQL, as PostgreSQL's lexer finds them.
//!
//! Source: `src/backend/parser/scan.l` of PostgreSQL 14 to 18, with `standard_conforming_strings`
//! on. Where versions disagree on what a text is, or the text hides a name behind escapes,
//! [`Tokens::unclear`] says so.

#[cfg(test)]
std::thread_local! {
    /// Bytes that were looked at, so that a test can say that they are few.
    pub(super) static WORK: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

/// One token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Token<'a> {
    /// A keyword or a name without quotes.
    Word(&'a [u8]),
    /// What stands between double quotes, doubled ones as they are.
    Name(&'a [u8]),
    /// What stands between the quotes of a string, escapes as they are.
    Text(&'a [u8], Quotes),
    /// A number, without a sign.
    Number,
    /// `$1`.
    Parameter,
    /// Anything else, one byte.
    Symbol(u8),
}

/// How a string is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Quotes {
    /// `'…'`, a quote doubled.
    Plain,
    /// `E'…'` and `U&'…'`, or of parts with a newline between them: what it says is not what
    /// stands there.
    Escaped,
    /// `$tag$…$tag$`.
    Dollar,
}

impl Token<'_> {
    pub(super) fn is_symbol(self, symbol: u8) -> bool {
        self == Token::Symbol(symbol)
    }
}

/// Iterates over the tokens, without blanks and comments. What is not closed ends with the text.
/// The work is linear in the bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tokens<'a> {
    text: &'a [u8],
    /// Where the next token is looked for.
    at: usize,
    /// Where the last token began.
    pub(super) began: usize,
    /// What was read can be read in another way.
    pub(super) unclear: bool,
}

impl<'a> Iterator for Tokens<'a> {
    type Item = Token<'a>;

    #[inline]
    fn next(&mut self) -> Option<Token<'a>> {
        loop {
            let first = self.peek(0)?;
            self.began = self.at;
            match first {
                b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c | 0 => self.at += 1,
                b'-' if self.peek(1) == Some(b'-') => self.skip_line(),
                b'/' if self.peek(1) == Some(b'*') => self.skip_comment(),
                b'\'' => return Some(self.string(1, false)),
                b'"' => {
                    let inner = self.quoted(1, b'"', false);
                    return Some(Token::Name(inner));
                }
                b'$' => return Some(self.dollar()),
                b'0'..=b'9' => return Some(self.number()),
                _ if starts_word(first) => return Some(self.word(first)),
                _ => {
                    self.at += 1;
                    return Some(Token::Symbol(first));
                }
            }
        }
    }
}

impl<'a> Tokens<'a> {
    pub(super) fn new(text: &'a [u8]) -> Tokens<'a> {
        Tokens { text, at: 0, began: 0, unclear: false }
    }

    /// Where the last token ended.
    pub(super) fn ended(&self) -> usize {
        self.at
    }

    /// The text from one place to another.
    pub(super) fn between(&self, begin: usize, end: usize) -> &'a [u8] {
        self.text.get(begin..end).unwrap_or_default()
    }

    #[inline]
    fn peek(&self, ahead: usize) -> Option<u8> {
        worked(1);
        self.text.get(self.at + ahead).copied()
    }

    fn rest(&self) -> &'a [u8] {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn skip_line(&mut self) {
        let end = self.rest().iter().position(|byte| matches!(byte, b'\n' | b'\r'));
        let bytes = end.unwrap_or(self.rest().len());
        worked(bytes);
        self.at += bytes;
    }

    /// Comments nest.
    fn skip_comment(&mut self) {
        let mut depth = 0_usize;
        loop {
            match (self.peek(0), self.peek(1)) {
                (Some(b'/'), Some(b'*')) => depth += 1,
                (Some(b'*'), Some(b'/')) => depth -= 1,
                (Some(_), _) => {
                    self.at += 1;
                    continue;
                }
                (None, _) => return,
            }
            self.at += 2;
            if depth == 0 {
                return;
            }
        }
    }

    /// A name or keyword, or the string whose kind it tells.
    fn word(&mut self, first: u8) -> Token<'a> {
        match (first, self.peek(1), self.peek(2)) {
            (b'e' | b'E', Some(b'\''), _) => return self.string(2, true),
            (b'b' | b'B' | b'x' | b'X' | b'n' | b'N', Some(b'\''), _) => {
                return self.string(2, false);
            }
            (b'u' | b'U', Some(b'&'), Some(b'\'')) => {
                let (Token::Text(inner, _) | Token::Word(inner)) = self.string(3, false) else {
                    return Token::Text(&[], Quotes::Escaped);
                };
                return Token::Text(inner, Quotes::Escaped);
            }
            (b'u' | b'U', Some(b'&'), Some(b'"')) => {
                let inner = self.quoted(3, b'"', false);
                // What it names stands behind escapes.
                self.unclear |= inner.contains(&b'\\');
                return Token::Name(inner);
            }
            _ => {}
        }
        let rest = self.rest();
        let end = rest.iter().position(|byte| !continues_word(*byte)).unwrap_or(rest.len());
        worked(end);
        self.at += end;
        Token::Word(&rest[..end])
    }

    /// A number. Before version 15 a letter right behind one begins a word, later it is an error or
    /// part of the number; what could be more than that is unclear.
    fn number(&mut self) -> Token<'a> {
        while let Some(byte) = self.peek(0) {
            match byte {
                b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' | b'_' | b'.' => self.at += 1,
                b'+' | b'-' if self.in_exponent() => self.at += 1,
                b'$' | b'\'' | b'"' | 0x80.. => {
                    self.unclear = true;
                    break;
                }
                b'&' if matches!(self.peek(1), Some(b'\'' | b'"')) => {
                    self.unclear = true;
                    break;
                }
                _ => break,
            }
        }
        Token::Number
    }

    /// Whether a sign belongs to `1e-5`, and not to `0x1e-5`.
    fn in_exponent(&self) -> bool {
        let number = &self.text[self.began..self.at];
        let digits = |byte: &u8| byte.is_ascii_digit() || *byte == b'.';
        match number {
            [mantissa @ .., b'e' | b'E'] => mantissa.iter().all(digits),
            _ => false,
        }
    }

    /// A string whose first quote is the byte before `skip` bytes are over. Parts with a newline
    /// between them are one.
    fn string(&mut self, skip: usize, backslash: bool) -> Token<'a> {
        let first = self.quoted(skip, b'\'', backslash);
        let mut quotes = if backslash { Quotes::Escaped } else { Quotes::Plain };
        while let Some(at) = self.continuation() {
            self.at = at;
            self.quoted(1, b'\'', backslash);
            quotes = Quotes::Escaped;
        }
        Token::Text(first, quotes)
    }

    /// Where a string that has just ended goes on: at a quote behind blanks with a newline in them,
    /// and line comments.
    fn continuation(&self) -> Option<usize> {
        let mut look = *self;
        let mut newline = false;
        loop {
            match look.peek(0)? {
                b'\'' if newline => return Some(look.at),
                b'\n' | b'\r' => newline = true,
                b' ' | b'\t' | 0x0b | 0x0c => {}
                b'-' if look.peek(1) == Some(b'-') => {
                    look.skip_line();
                    continue;
                }
                _ => return None,
            }
            look.at += 1;
        }
    }

    /// From a quote (the last of `skip` bytes) to its end; a doubled one does not end it, nor one
    /// behind a backslash where that escapes.
    fn quoted(&mut self, skip: usize, quote: u8, backslash: bool) -> &'a [u8] {
        self.at += skip;
        let begin = self.at;
        while let Some(byte) = self.peek(0) {
            let doubled = byte == quote && self.peek(1) == Some(quote);
            if doubled || (backslash && byte == b'\\') {
                self.at += 1;
            } else if byte == quote {
                let inner = &self.text[begin..self.at];
                self.at += 1;
                return inner;
            }
            self.at += 1;
        }
        self.at = self.text.len();
        self.text.get(begin..).unwrap_or_default()
    }

    /// `$1`, a text between two equal `$tag$`, or a lone dollar sign.
    fn dollar(&mut self) -> Token<'a> {
        let rest = self.rest();
        let tag = |byte: &u8| *byte == b'_' || byte.is_ascii_alphanumeric() || *byte >= 0x80;
        match rest.get(1) {
            Some(b'0'..=b'9') => {
                self.at += 1;
                while self.peek(0).is_some_and(|byte| byte.is_ascii_digit()) {
                    self.at += 1;
                }
                self.unclear |= self.peek(0).is_some_and(continues_word);
                return Token::Parameter;
            }
            Some(byte) if tag(byte) || *byte == b'$' => {}
            Some(_) | None => {
                self.at += 1;
                return Token::Symbol(b'$');
            }
        }
        let end = rest[1..].iter().position(|byte| !tag(byte)).map_or(rest.len(), |at| at + 1);
        worked(end);
        if rest.get(end) != Some(&b'$') {
            self.at += 1;
            return Token::Symbol(b'$');
        }
        let (tag, body) = rest.split_at(end + 1);
        let (inner, closed) = match closing(body, tag) {
            Some(at) => (&body[..at], tag.len()),
            None => (body, 0),
        };
        worked(inner.len());
        self.at += tag.len() + inner.len() + closed;
        Token::Text(inner, Quotes::Dollar)
    }
}

/// Where `tag` stands in `body`. A tag has no dollar sign within, so that what is compared in vain
/// at one dollar sign ends at the next one, and the whole is linear.
fn closing(body: &[u8], tag: &[u8]) -> Option<usize> {
    let mut from = 0;
    loop {
        let at = from + body.get(from..)?.iter().position(|byte| *byte == b'$')?;
        if body[at..].starts_with(tag) {
            return Some(at);
        }
        from = at + 1;
    }
}

#[inline]
fn worked(_bytes: usize) {
    #[cfg(test)]
    WORK.set(WORK.get() + _bytes);
}

fn starts_word(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || byte == b'_' || byte >= 0x80
}

fn continues_word(byte: u8) -> bool {
    starts_word(byte) || byte.is_ascii_digit() || byte == b'$'
}
