//! Rules of who is let in from where, in the format of `pg_hba.conf` (PostgreSQL, "The pg_hba.conf
//! File"): the first rule that fits decides, and none that fits is a refusal.
//!
//! What a proxy cannot know is refused when the file is read, so that no rule is silently without
//! effect: `local`, host names, `samehost` and `samenet`, `samerole`, maps, `ident`, `peer` and the
//! methods of other services. Membership in roles (`+role`) is known to the server alone: a rule
//! that hangs on it answers [`Decision::NeedsRoles`] until the caller has asked.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::proxy_auth::AuthMethod;
use crate::restapi::Network;

/// More rules, or longer lines, are nobody's.
const RULES_MAX: usize = 10_000;
const LINE_BYTES_MAX: usize = 10_000;

/// What the rules say about a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// It may authenticate so.
    Let(AuthMethod),
    /// A rule refuses it.
    Rejected {
        /// The rule's line.
        line: usize,
    },
    /// No rule fits.
    NoRule,
    /// It hangs on the roles that the user is a member of: ask the server, and then again.
    NeedsRoles,
}

/// A client, as rules look at it.
#[derive(Debug, Clone, Copy)]
pub struct Arrival<'a> {
    /// Where it comes from.
    pub address: IpAddr,
    /// Whether it came over TLS.
    pub tls: bool,
    /// The database that it wants.
    pub database: &'a str,
    /// Whether it wants to replicate the whole instance (`replication=true`).
    pub replication: bool,
    /// Whom it says it is.
    pub user: &'a str,
    /// The roles that the user is a member of, the user itself among them; `None`: not known yet.
    pub roles: Option<&'a BTreeSet<String>>,
}

/// Why a file of rules is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct RuleError {
    /// From 1.
    pub line: usize,
    /// What is wrong, and what would be right.
    pub reason: String,
}

/// The rules of a file in their order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rules(Vec<Rule>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    line: usize,
    /// `None`: with and without.
    tls: Option<bool>,
    databases: Vec<Database>,
    users: Vec<User>,
    /// `None`: from everywhere.
    network: Option<Network>,
    /// `None`: refused.
    method: Option<AuthMethod>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Database {
    All,
    SameUser,
    Replication,
    Named(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum User {
    All,
    MemberOf(String),
    Named(String),
}

/// A field's piece; quotes take the meaning from keywords.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Word {
    text: String,
    quoted: bool,
}

impl Word {
    fn is(&self, keyword: &str) -> bool {
        !self.quoted && self.text == keyword
    }
}

impl Rules {
    /// Reads a file's text.
    ///
    /// # Errors
    /// The first line that is wrong, and why.
    pub fn parse(text: &str) -> Result<Rules, RuleError> {
        let mut rules = Vec::new();
        let mut lines = text.lines().enumerate();
        while let Some((index, first)) = lines.next() {
            let mut line = first.trim_end_matches('\r').to_owned();
            while line.ends_with('\\') {
                line.pop();
                line.push_str(lines.next().map_or("", |(_, next)| next.trim_end_matches('\r')));
            }
            let at = |reason| RuleError { line: index + 1, reason };
            if line.len() > LINE_BYTES_MAX || rules.len() == RULES_MAX {
                let limits = format!("more than {RULES_MAX} rules, or {LINE_BYTES_MAX} bytes");
                return Err(at(limits));
            }
            let fields = fields(&line).map_err(at)?;
            if !fields.is_empty() {
                rules.push(rule(index + 1, &fields).map_err(at)?);
            }
        }
        Ok(Rules(rules))
    }

    /// What is said about a client.
    #[must_use]
    pub fn decide(&self, client: &Arrival<'_>) -> Decision {
        for rule in &self.0 {
            let here = rule.tls.is_none_or(|tls| tls == client.tls)
                && rule.network.is_none_or(|network| network.contains(client.address))
                && rule.databases.iter().any(|database| database.fits(client));
            if !here {
                continue;
            }
            match rule.names(client) {
                Some(false) => {}
                None => return Decision::NeedsRoles,
                Some(true) => {
                    let rejected = Decision::Rejected { line: rule.line };
                    return rule.method.map_or(rejected, Decision::Let);
                }
            }
        }
        Decision::NoRule
    }

    /// Whether a rule hangs on membership in roles.
    #[must_use]
    pub fn need_roles(&self) -> bool {
        let mut users = self.0.iter().flat_map(|rule| &rule.users);
        users.any(|user| matches!(user, User::MemberOf(_)))
    }

    /// The methods that any rule names.
    #[must_use]
    pub fn methods(&self) -> BTreeSet<AuthMethod> {
        self.0.iter().filter_map(|rule| rule.method).collect()
    }
}

impl Rule {
    /// Whether it is about this user; `None` if that hangs on roles that are not known.
    fn names(&self, client: &Arrival<'_>) -> Option<bool> {
        let mut unknown = false;
        for user in &self.users {
            let fits = match user {
                User::All => true,
                User::Named(name) => name == client.user,
                User::MemberOf(role) => match client.roles {
                    Some(roles) => roles.contains(role),
                    None => {
                        unknown = true;
                        false
                    }
                },
            };
            if fits {
                return Some(true);
            }
        }
        (!unknown).then_some(false)
    }
}

impl Database {
    /// As PostgreSQL has it, `all` does not mean replication (`check_db` in `hba.c`).
    fn fits(&self, client: &Arrival<'_>) -> bool {
        match self {
            Database::Replication => client.replication,
            Database::All => !client.replication,
            Database::SameUser => !client.replication && client.database == client.user,
            Database::Named(name) => !client.replication && name == client.database,
        }
    }
}

fn rule(line: usize, fields: &[Vec<Word>]) -> Result<Rule, String> {
    let mut fields = fields.iter();
    let kind = one(fields.next(), "a type")?;
    let tls = match kind.text.as_str() {
        "host" => None,
        "hostssl" => Some(true),
        "hostnossl" => Some(false),
        "local" => return Err("local connections do not come to a proxy: write host".to_owned()),
        other => return Err(format!("the type is host, hostssl or hostnossl, not {other}")),
    };
    let databases = fields.next().ok_or("the database is missing")?;
    let databases = databases.iter().map(database).collect::<Result<_, _>>()?;
    let users = fields.next().ok_or("the user is missing")?;
    let users = users.iter().map(user).collect::<Result<_, _>>()?;
    let address = one(fields.next(), "an address")?;
    let mut method = one(fields.next(), "a method")?;
    let network = if address.is("all") {
        None
    } else {
        let mut text = address.text.clone();
        if !text.contains('/') {
            text = format!("{text}/{}", mask(&method.text)?);
            method = one(fields.next(), "a method")?;
        }
        Some(Network::parse(&text).ok_or_else(|| not_an_address(&address.text))?)
    };
    let method = match method.text.as_str() {
        "reject" => None,
        "trust" => Some(AuthMethod::Trust),
        "password" => Some(AuthMethod::Password),
        "md5" => Some(AuthMethod::Md5),
        "scram-sha-256" => Some(AuthMethod::Scram),
        "cert" if tls == Some(true) => Some(AuthMethod::Cert),
        "cert" => return Err("cert needs hostssl".to_owned()),
        other => {
            let known = "trust, reject, password, md5, scram-sha-256 or cert";
            return Err(format!("the method {other} is not supported: {known} are"));
        }
    };
    if let Some(option) = fields.next().and_then(|words| words.first()) {
        return Err(format!("options are not supported: leave {} out", option.text));
    }
    Ok(Rule { line, tls, databases, users, network, method })
}

/// A mask as what stands behind a slash.
fn mask(text: &str) -> Result<String, String> {
    match text.parse::<IpAddr>() {
        Ok(IpAddr::V4(mask)) => Ok(mask.to_string()),
        Ok(IpAddr::V6(mask)) => {
            let bits = mask.to_bits();
            let whole = bits.leading_ones() + bits.trailing_zeros() >= u128::BITS;
            let bad = format!("{text} is no mask");
            whole.then(|| bits.leading_ones().to_string()).ok_or(bad)
        }
        Err(_) => Err("the address needs a mask, such as 10.0.0.0/8 or 10.0.0.1/32; names of \
                       hosts are not supported"
            .to_owned()),
    }
}

fn not_an_address(text: &str) -> String {
    format!("{text} is no address with a mask, such as 10.0.0.0/8 or fd00::/8, and not all")
}

fn one<'a>(words: Option<&'a Vec<Word>>, what: &str) -> Result<&'a Word, String> {
    match words.map(Vec::as_slice) {
        Some([word]) => Ok(word),
        Some(_) => Err(format!("{what} is one word, not a list")),
        None => Err(format!("{what} is missing")),
    }
}

fn database(word: &Word) -> Result<Database, String> {
    if word.quoted {
        return Ok(Database::Named(word.text.clone()));
    }
    match word.text.as_str() {
        "all" => Ok(Database::All),
        "sameuser" => Ok(Database::SameUser),
        "replication" => Ok(Database::Replication),
        "samerole" | "samegroup" => Err(format!("{} is not supported", word.text)),
        name => plain(name).map(Database::Named),
    }
}

fn user(word: &Word) -> Result<User, String> {
    if word.is("all") {
        return Ok(User::All);
    }
    if word.quoted {
        return Ok(User::Named(word.text.clone()));
    }
    match word.text.strip_prefix('+') {
        Some(role) => plain(role).map(User::MemberOf),
        None => plain(&word.text).map(User::Named),
    }
}

/// A name without the signs by which PostgreSQL knows files and regular expressions.
fn plain(name: &str) -> Result<String, String> {
    if name.starts_with('@') || name.starts_with('/') || name.is_empty() {
        return Err(format!("{name:?}: files and regular expressions are not supported"));
    }
    Ok(name.to_owned())
}

/// The fields of a line, each a list of words between commas.
fn fields(line: &str) -> Result<Vec<Vec<Word>>, String> {
    let mut fields: Vec<Vec<Word>> = Vec::new();
    let mut characters = line.chars().peekable();
    // Whether the next word joins the last field.
    let mut joins = false;
    loop {
        while characters.next_if(|c| c.is_whitespace()).is_some() {}
        match characters.peek() {
            None | Some('#') if joins => return Err("a list ends with a comma".to_owned()),
            None | Some('#') => return Ok(fields),
            Some(',') => return Err("a comma without a word before it".to_owned()),
            Some(_) => {}
        }
        let word = next_word(&mut characters)?;
        match fields.last_mut().filter(|_| joins) {
            Some(field) => field.push(word),
            None => fields.push(vec![word]),
        }
        joins = characters.next_if_eq(&',').is_some();
    }
}

fn next_word(characters: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Result<Word, String> {
    let mut word = Word { text: String::new(), quoted: characters.peek() == Some(&'"') };
    let mut inside = false;
    while let Some(c) =
        characters.next_if(|c| inside || !(c.is_whitespace() || matches!(c, ',' | '#')))
    {
        match c {
            '"' if inside && characters.next_if_eq(&'"').is_some() => word.text.push('"'),
            '"' => inside = !inside,
            other => word.text.push(other),
        }
    }
    if inside { Err("a quote is not closed".to_owned()) } else { Ok(word) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"
# TYPE  DATABASE  USER  ADDRESS  METHOD
host      all             batman          10.0.0.0/8              reject   # not from inside
hostssl   all             batman,robin    all                     cert
hostnossl "all"           all             ::1/128                 trust
host      shop,"a b"      +traders        192.168.1.7  255.255.255.255  scram-sha-256
host      replication     herd            0.0.0.0/0               md5
host      sameuser        all             0.0.0.0/0 \
          password
"#;

    fn arrival<'a>(address: &str, tls: bool, database: &'a str, user: &'a str) -> Arrival<'a> {
        let address = address.parse().expect("an address");
        Arrival { address, tls, database, replication: false, user, roles: None }
    }

    #[test]
    fn the_first_rule_that_fits_decides() {
        let rules = Rules::parse(FILE).expect("good");
        let decide = |client: Arrival<'_>| rules.decide(&client);
        assert_eq!(
            decide(arrival("10.9.9.9", true, "x", "batman")),
            Decision::Rejected { line: 3 }
        );
        let inside = arrival("::ffff:10.9.9.9", true, "x", "batman");
        assert_eq!(decide(inside), Decision::Rejected { line: 3 }, "IPv4 over IPv6");
        assert_eq!(
            decide(arrival("9.9.9.9", true, "x", "batman")),
            Decision::Let(AuthMethod::Cert)
        );
        assert_eq!(decide(arrival("::2", true, "x", "robin")), Decision::Let(AuthMethod::Cert));
        assert_eq!(decide(arrival("9.9.9.9", false, "x", "robin")), Decision::NoRule);
        // A quoted keyword is a name.
        assert_eq!(decide(arrival("::1", false, "all", "x")), Decision::Let(AuthMethod::Trust));
        assert_eq!(decide(arrival("::1", false, "other", "x")), Decision::NoRule);
        assert_eq!(
            decide(arrival("9.9.9.9", false, "x", "x")),
            Decision::Let(AuthMethod::Password)
        );
        let herd = Arrival { replication: true, ..arrival("9.9.9.9", false, "herd", "herd") };
        assert_eq!(decide(herd), Decision::Let(AuthMethod::Md5));
        let batman = Arrival { replication: true, ..arrival("10.0.0.1", false, "", "batman") };
        assert_eq!(decide(batman), Decision::NoRule, "all databases are not replication");
        assert_eq!(Rules::parse("").expect("empty").decide(&herd), Decision::NoRule);
    }

    #[test]
    fn membership_has_to_be_known() {
        let rules = Rules::parse(FILE).expect("good");
        assert!(rules.need_roles());
        let client = arrival("192.168.1.7", false, "a b", "joker");
        assert_eq!(rules.decide(&client), Decision::NeedsRoles);
        let (member, other) = (["traders".to_owned()].into(), ["joker".to_owned()].into());
        let with = |roles| rules.decide(&Arrival { roles: Some(roles), ..client });
        assert_eq!(with(&member), Decision::Let(AuthMethod::Scram));
        assert_eq!(with(&other), Decision::NoRule);
        let elsewhere = arrival("192.168.1.8", false, "a b", "joker");
        assert_eq!(rules.decide(&elsewhere), Decision::NoRule, "nothing hangs on it");
        let without = Rules::parse("host all all all trust").expect("good");
        assert!(!without.need_roles());
        assert_eq!(without.methods(), [AuthMethod::Trust].into());
    }

    #[test]
    fn what_cannot_be_is_refused_by_line_and_reason() {
        for (line, says) in [
            ("local all all trust", "local connections do not come"),
            ("hostgssenc all all all trust", "not hostgssenc"),
            ("host all all", "an address is missing"),
            ("host all all 10.0.0.0/8", "a method is missing"),
            ("host all all 10.0.0.1 trust", "needs a mask"),
            ("host all all db1 scram-sha-256", "needs a mask"),
            ("host all all samehost trust", "needs a mask"),
            ("host all all 10.0.0.0/33 trust", "no address with a mask"),
            ("host all all 10.0.0.1 255.0.255.0 trust", "no address with a mask"),
            ("host all all ::1 ffff::1 trust", "no mask"),
            ("host all all a/b trust", "no address with a mask"),
            ("host samerole all all trust", "samerole is not supported"),
            ("host all @file all trust", "files and regular expressions"),
            ("host /^x all all trust", "files and regular expressions"),
            ("host all + all trust", "files and regular expressions"),
            ("host all all all cert", "cert needs hostssl"),
            ("hostssl all all all peer", "the method peer is not supported"),
            ("hostssl all all all cert map=x", "leave map=x out"),
            ("host all a, all trust", "a method is missing"),
            ("host all all all trust,", "ends with a comma"),
            ("host , all all trust", "a comma without a word"),
            ("host \"all all all trust", "a quote is not closed"),
        ] {
            let error = Rules::parse(&format!("\n{line}\n")).expect_err(line);
            let shown = error.to_string();
            assert!(shown.starts_with("line 2: ") && shown.contains(says), "{line}: {shown}");
        }
    }

    #[test]
    fn masks_stand_behind_a_slash_or_alone() {
        for (line, inside, outside) in [
            ("host all all ::1 ffff:: trust", "0:1::1", "1::1"),
            ("host all all 10.1.2.3/16 trust", "10.1.9.9", "10.2.0.1"),
            ("host all all 10.1.2.3 255.0.0.0 trust", "10.9.9.9", "11.0.0.1"),
        ] {
            let rules = Rules::parse(line).expect(line);
            let decide = |address| rules.decide(&arrival(address, false, "d", "u"));
            assert_eq!(decide(inside), Decision::Let(AuthMethod::Trust), "{line}");
            assert_eq!(decide(outside), Decision::NoRule, "{line}");
        }
    }

    #[test]
    fn no_text_is_too_odd_to_be_refused() {
        let mut seed = 1u64;
        let mut next = |below: usize| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            usize::try_from(seed >> 33).expect("31 bits") % below
        };
        let client = arrival("10.0.0.1", false, "d", "u");
        for _ in 0..2_000 {
            let mut text = FILE.to_owned();
            for _ in 0..4 {
                let at = (0..=next(text.len() + 1)).rev().find(|at| text.is_char_boundary(*at));
                let odd = ["\"", ",", "\\", "\n", "#", "/", "\u{e9}", " host "][next(8)];
                text.insert_str(at.unwrap_or(0), odd);
            }
            // That nothing panics is what counts.
            let _decision = Rules::parse(&text).map(|rules| rules.decide(&client));
        }
    }
}
