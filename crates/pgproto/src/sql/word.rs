//! What a word means to the question of what a statement leaves behind.

/// The words that decide, and classes of others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Word {
    Abort,
    As,
    Atomic,
    Authorization,
    Begin,
    Case,
    Characteristics,
    Commit,
    Constraints,
    Create,
    Deallocate,
    Declare,
    Default,
    Discard,
    Do,
    Drop,
    Else,
    End,
    For,
    Function,
    Global,
    Hold,
    Into,
    Language,
    Listen,
    Load,
    Local,
    Loop,
    Names,
    On,
    Or,
    PlpgsqlOrSql,
    Prepare,
    Prepared,
    Raise,
    Replace,
    Reset,
    Role,
    Rollback,
    Schema,
    Select,
    Session,
    Set,
    SetConfig,
    Show,
    Start,
    Table,
    Temporary,
    Then,
    Time,
    To,
    Transaction,
    True,
    Uescape,
    Update,
    Values,
    With,
    Work,
    Zone,
    All,
    /// Writes, locks, or gives its result another place.
    Writes,
    /// May stand before a parenthesis in a read-only statement: a word of the grammar, a type, or a
    /// function that only computes.
    Harmless,
    /// Takes a lock that its session keeps, or tries to.
    AdvisoryLock,
    /// Changes a session by a function: the seed, a replication origin, named connections,
    /// temporary slots.
    ChangesSession,
    /// `currval`, `lastval`.
    Sequence,
    /// `pg_temp` and what begins so.
    PgTemp,
    /// `pg_settings`, which can be updated.
    PgSettings,
    /// `pg_catalog`.
    PgCatalog,
    /// Another name that begins with `pg_`: it may answer otherwise on another server.
    PgOther,
    /// Anything else.
    Name,
}

/// The longest word that is looked up; longer ones are names.
const BYTES_MAX: usize = 40;
/// Slots of the index, some four times the words, so that most words are found, or not, at once.
const SLOTS: usize = 1024;

/// The words that decide.
#[rustfmt::skip]
const DECIDING: [(&str, Word); 90] = [
    ("abort", Word::Abort),
    ("all", Word::All),
    ("as", Word::As),
    ("atomic", Word::Atomic),
    ("authorization", Word::Authorization),
    ("begin", Word::Begin),
    ("case", Word::Case),
    ("characteristics", Word::Characteristics),
    ("commit", Word::Commit),
    ("constraints", Word::Constraints),
    ("create", Word::Create),
    ("deallocate", Word::Deallocate),
    ("declare", Word::Declare),
    ("default", Word::Default),
    ("discard", Word::Discard),
    ("do", Word::Do),
    ("drop", Word::Drop),
    ("else", Word::Else),
    ("end", Word::End),
    ("for", Word::For),
    ("function", Word::Function),
    ("procedure", Word::Function),
    ("global", Word::Global),
    ("hold", Word::Hold),
    ("into", Word::Into),
    ("language", Word::Language),
    ("listen", Word::Listen),
    ("load", Word::Load),
    ("local", Word::Local),
    ("loop", Word::Loop),
    ("names", Word::Names),
    ("on", Word::On),
    ("or", Word::Or),
    ("plpgsql", Word::PlpgsqlOrSql),
    ("sql", Word::PlpgsqlOrSql),
    ("prepare", Word::Prepare),
    ("prepared", Word::Prepared),
    ("raise", Word::Raise),
    ("replace", Word::Replace),
    ("reset", Word::Reset),
    ("role", Word::Role),
    ("rollback", Word::Rollback),
    ("schema", Word::Schema),
    ("select", Word::Select),
    ("session", Word::Session),
    ("set", Word::Set),
    ("set_config", Word::SetConfig),
    ("show", Word::Show),
    ("start", Word::Start),
    ("table", Word::Table),
    ("temp", Word::Temporary),
    ("temporary", Word::Temporary),
    ("then", Word::Then),
    ("time", Word::Time),
    ("to", Word::To),
    ("transaction", Word::Transaction),
    ("true", Word::True),
    ("uescape", Word::Uescape),
    ("update", Word::Update),
    ("values", Word::Values),
    ("with", Word::With),
    ("work", Word::Work),
    ("zone", Word::Zone),
    ("insert", Word::Writes),
    ("delete", Word::Writes),
    ("merge", Word::Writes),
    ("share", Word::Writes),
    ("nowait", Word::Writes),
    ("skip", Word::Writes),
    ("returning", Word::Writes),
    ("currval", Word::Sequence),
    ("lastval", Word::Sequence),
    ("setseed", Word::ChangesSession),
    ("dblink_connect", Word::ChangesSession),
    ("dblink_connect_u", Word::ChangesSession),
    ("dblink_open", Word::ChangesSession),
    ("pg_advisory_lock", Word::AdvisoryLock),
    ("pg_advisory_lock_shared", Word::AdvisoryLock),
    ("pg_try_advisory_lock", Word::AdvisoryLock),
    ("pg_try_advisory_lock_shared", Word::AdvisoryLock),
    ("pg_replication_origin_session_setup", Word::ChangesSession),
    ("pg_create_physical_replication_slot", Word::ChangesSession),
    ("pg_create_logical_replication_slot", Word::ChangesSession),
    ("pg_copy_physical_replication_slot", Word::ChangesSession),
    ("pg_copy_logical_replication_slot", Word::ChangesSession),
    ("pg_settings", Word::PgSettings),
    ("pg_catalog", Word::PgCatalog),
    ("pg_typeof", Word::Harmless),
    ("pg_sleep", Word::Harmless),
    ("pg_column_size", Word::Harmless),
];

/// Short on purpose: what is missing here is not sent to a standby, which is never wrong.
#[rustfmt::skip]
const HARMLESS: &[&str] = &[
    // The grammar's.
    "in", "exists", "any", "some", "and", "not", "from", "join", "using",
     "where", "over", "by", "filter", "group", "when", "having", "lateral",
     "union", "except", "intersect", "limit", "offset", "distinct", "between",
     "like", "ilike", "is", "materialized", "array", "row", "cast", "interval",
     "null", "recursive", "rollup", "cube", "sets", "partition", "order",
    // Types with a length.
     "numeric", "decimal", "varchar", "char", "character", "varying", "bit",
     "timestamp", "timestamptz",
    // Aggregates and windows.
     "count", "sum", "min", "max", "avg", "bool_and", "bool_or", "every",
     "array_agg", "string_agg", "json_agg", "jsonb_agg", "json_object_agg",
     "jsonb_object_agg", "stddev", "variance", "row_number", "rank", "dense_rank",
     "lag", "lead", "first_value", "last_value", "ntile", "percentile_cont",
     "percentile_disc", "mode", "grouping",
    // Values.
     "coalesce", "nullif", "greatest", "least", "abs", "ceil", "ceiling",
     "floor", "round", "trunc", "mod", "power", "sqrt", "exp", "ln", "sign",
     "random", "length", "char_length", "octet_length", "lower", "upper",
     "initcap", "trim", "btrim", "ltrim", "rtrim", "lpad", "rpad", "left",
     "right", "substring", "substr", "position", "strpos", "overlay", "concat",
     "concat_ws", "format", "translate", "repeat", "reverse",
     "split_part", "regexp_replace", "regexp_match", "regexp_matches", "md5",
     "sha256", "encode", "decode", "to_char", "to_date", "to_number",
     "to_timestamp", "extract", "date_part", "date_trunc", "age", "now",
     "make_date", "make_interval", "make_timestamptz", "generate_series", "unnest",
     "array_length", "array_position", "array_to_string", "string_to_array",
     "cardinality", "to_json", "to_jsonb", "row_to_json", "json_build_object",
     "jsonb_build_object", "json_build_array", "jsonb_build_array", "jsonb_set",
     "jsonb_array_elements", "json_array_elements", "jsonb_array_length",
     "jsonb_extract_path_text", "jsonb_each", "version",
];

/// Where a word is in both lists, one behind the other, plus one; 0 is an empty slot. Open
/// addressing: what is taken goes to the next slot.
static INDEX: [u16; SLOTS] = index();

const fn index() -> [u16; SLOTS] {
    let mut index = [0; SLOTS];
    let mut at = 0;
    while at < DECIDING.len() + HARMLESS.len() {
        let text = if at < DECIDING.len() { DECIDING[at].0 } else { HARMLESS[at - DECIDING.len()] };
        let text = text.as_bytes();
        assert!(text.len() <= BYTES_MAX);
        let mut slot = slot_of(text);
        while index[slot] != 0 {
            slot = (slot + 1) % SLOTS;
        }
        at += 1;
        assert!(at < u16::MAX as usize);
        #[allow(clippy::cast_possible_truncation)] // the line above
        {
            index[slot] = at as u16;
        }
    }
    index
}

/// By length and four letters, in any case: few words have them in common.
const fn slot_of(text: &[u8]) -> usize {
    let [.., last] = text else { return 0 };
    let bytes = text.len();
    let letters = [text[0], text[bytes / 3], text[bytes / 2], *last];
    let mut hash = bytes;
    let mut at = 0;
    while at < letters.len() {
        hash = hash * 33 + (letters[at] | 0x20) as usize;
        at += 1;
    }
    (hash ^ (hash >> 10)) % SLOTS
}

/// Looks a word up, in any case.
#[inline]
pub(super) fn word(text: &[u8]) -> Word {
    let found = if text.len() <= BYTES_MAX { find(text) } else { None };
    match found {
        Some(word) => word,
        None if begins(text, b"pg_temp") => Word::PgTemp,
        None if begins(text, b"pg_") => Word::PgOther,
        None => Word::Name,
    }
}

fn find(text: &[u8]) -> Option<Word> {
    let mut slot = slot_of(text);
    // It ends at an empty slot: there are more slots than words.
    loop {
        let at = usize::from(INDEX[slot]).checked_sub(1)?;
        let (known, word) = match DECIDING.get(at) {
            Some((known, word)) => (*known, *word),
            None => (HARMLESS[at - DECIDING.len()], Word::Harmless),
        };
        if text.eq_ignore_ascii_case(known.as_bytes()) {
            return Some(word);
        }
        slot = (slot + 1) % SLOTS;
    }
}

fn begins(text: &[u8], with: &[u8]) -> bool {
    text.get(..with.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(with))
}
