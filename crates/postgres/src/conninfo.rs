//! libpq's connection strings as text: written and read. Pure.

use std::collections::BTreeMap;

/// What starts a connection string that is a URI.
const SCHEMES: [&str; 2] = ["postgresql://", "postgres://"];

/// Adds one setting.
pub(crate) fn pair(text: &mut String, name: &str, value: &str) {
    if !text.is_empty() {
        text.push(' ');
    }
    text.push_str(name);
    text.push('=');
    if value.is_empty() {
        text.push_str("''");
    }
    for c in value.chars() {
        if matches!(c, '\'' | '\\' | ' ') {
            text.push('\\');
        }
        text.push(c);
    }
}

/// The values of a connection string of either form; `None` if it is neither.
pub(crate) fn parse_any(text: &str) -> Option<BTreeMap<String, String>> {
    let text = text.trim();
    match SCHEMES.iter().find_map(|scheme| text.strip_prefix(scheme)) {
        Some(rest) => parse_uri(rest),
        None => {
            let values = parse(text);
            // A host alone, say, is no setting.
            (!values.is_empty()).then_some(values)
        }
    }
}

/// The values of a libpq connection string; what does not parse is left out.
pub(crate) fn parse(text: &str) -> BTreeMap<String, String> {
    let mut values = BTreeMap::new();
    let mut chars = text.chars().peekable();
    loop {
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        let mut name = String::new();
        while let Some(c) = chars.next_if(|c| *c != '=') {
            name.push(c);
        }
        if chars.next().is_none() {
            return values;
        }
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        let quoted = chars.next_if_eq(&'\'').is_some();
        let mut value = String::new();
        while let Some(c) = chars.next() {
            match c {
                '\\' => value.extend(chars.next()),
                '\'' if quoted => break,
                c if c.is_whitespace() && !quoted => break,
                c => value.push(c),
            }
        }
        values.insert(name.trim().to_owned(), value);
    }
}

/// `[user[:password]@][host[:port],…][/dbname][?name=value&…]`.
fn parse_uri(rest: &str) -> Option<BTreeMap<String, String>> {
    let mut values = BTreeMap::new();
    let mut set = |name: &str, text: &str| {
        let value = decoded(text)?;
        if !value.is_empty() {
            values.insert(name.to_owned(), value);
        }
        Some(())
    };
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
    let hosts = match authority.rsplit_once('@') {
        Some((who, hosts)) => {
            let (user, password) = who.split_once(':').unwrap_or((who, ""));
            set("user", user)?;
            set("password", password)?;
            hosts
        }
        None => authority,
    };
    let split: Vec<(&str, &str)> = hosts.split(',').map(host_and_port).collect::<Option<_>>()?;
    let ports: Vec<&str> = split.iter().map(|(_, port)| *port).collect();
    set("host", &split.iter().map(|(host, _)| *host).collect::<Vec<_>>().join(","))?;
    if ports.iter().any(|port| !port.is_empty()) {
        set("port", &ports.join(","))?;
    }
    set("dbname", database)?;
    for setting in query.split('&').filter(|setting| !setting.is_empty()) {
        let (name, value) = setting.split_once('=')?;
        set(&decoded(name)?, value)?;
    }
    Some(values)
}

fn host_and_port(text: &str) -> Option<(&str, &str)> {
    if let Some(inner) = text.strip_prefix('[') {
        let (host, port) = inner.split_once(']')?;
        return Some((host, port.strip_prefix(':').unwrap_or(port)));
    }
    Some(text.split_once(':').unwrap_or((text, "")))
}

/// Text in which `%` and two digits stand for a byte.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
        let byte = match byte {
            b'%' => u8::try_from(digit(rest.next())? * 16 + digit(rest.next())?).ok()?,
            byte => byte,
        };
        bytes.push(byte);
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &[(&str, &str)]) {
        let values = parse_any(text).unwrap_or_else(|| panic!("{text} is a connection string"));
        let found: Vec<(&str, &str)> =
            values.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(found, expected, "{text}");
    }

    #[test]
    fn both_forms_are_read() {
        check(
            "host=a port = 77  password='b \\'c'",
            &[("host", "a"), ("password", "b 'c"), ("port", "77")],
        );
        check(
            "postgres://u%40x:p%3Aq@h1:1,[::1]:2/db?sslmode=require",
            &[
                ("dbname", "db"),
                ("host", "h1,::1"),
                ("password", "p:q"),
                ("port", "1,2"),
                ("sslmode", "require"),
                ("user", "u@x"),
            ],
        );
        check("postgresql:///db?host=%2Ftmp", &[("dbname", "db"), ("host", "/tmp")]);
        check("postgresql://h", &[("host", "h")]);
    }

    #[test]
    fn what_is_neither_is_none() {
        for text in ["", "host", "postgres://a@h?x", "postgres://%zz@h", "postgres://[::1"] {
            assert_eq!(parse_any(text), None, "{text}");
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let mut text = String::new();
        pair(&mut text, "user", "a 'b\\");
        pair(&mut text, "dbname", "");
        let values = parse(&text);
        assert_eq!((values["user"].as_str(), values["dbname"].as_str()), ("a 'b\\", ""));
    }
}
