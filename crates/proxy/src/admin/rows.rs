//! Tables as messages of the protocol: RowDescription, DataRow, CommandComplete, all in text form.
//!
//! Source: PostgreSQL documentation, "Message Formats"; type numbers from `pg_type.dat`.

/// The type of a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    Int4,
    Numeric,
}

impl Kind {
    /// Its number in `pg_type`, and its size in bytes, negative where that differs.
    fn numbers(self) -> (i32, i16) {
        match self {
            Kind::Text => (25, -1),
            Kind::Int4 => (23, 4),
            Kind::Numeric => (1700, -1),
        }
    }
}

/// What `SHOW` answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) columns: Vec<(&'static str, Kind)>,
    pub(super) rows: Vec<Vec<String>>,
}

impl Table {
    /// A table without rows, from `name` and `s` (text), `i` (a number of 4 bytes) or `n` (any
    /// number) for each column.
    pub(super) fn new(names: &[&'static str], kinds: &str) -> Table {
        let kind = |letter| match letter {
            'i' => Kind::Int4,
            'n' => Kind::Numeric,
            _ => Kind::Text,
        };
        debug_assert_eq!(names.len(), kinds.len());
        Table {
            columns: names.iter().copied().zip(kinds.chars().map(kind)).collect(),
            rows: vec![],
        }
    }

    /// All its messages, up to ReadyForQuery.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        message(&mut bytes, b'T', |body| {
            body.extend(count(self.columns.len()));
            for (name, kind) in &self.columns {
                let (number, size) = kind.numbers();
                string(body, name);
                // No table, no column of one.
                body.extend([0; 6]);
                body.extend(number.to_be_bytes());
                body.extend(size.to_be_bytes());
                body.extend((-1_i32).to_be_bytes());
                body.extend([0; 2]);
            }
        });
        for row in &self.rows {
            debug_assert_eq!(row.len(), self.columns.len());
            message(&mut bytes, b'D', |body| {
                body.extend(count(row.len()));
                for cell in row {
                    body.extend(u32::try_from(cell.len()).unwrap_or(u32::MAX).to_be_bytes());
                    body.extend(cell.as_bytes());
                }
            });
        }
        complete(&mut bytes, "SHOW");
        bytes
    }
}

/// CommandComplete and ReadyForQuery.
pub(super) fn complete(into: &mut Vec<u8>, tag: &str) {
    message(into, b'C', |body| string(body, tag));
    route::link::ready_for_query(into, b'I');
}

/// EmptyQueryResponse and ReadyForQuery.
pub(super) fn nothing(into: &mut Vec<u8>) {
    message(into, b'I', |_| {});
    route::link::ready_for_query(into, b'I');
}

/// NoticeResponse.
pub(super) fn notice(into: &mut Vec<u8>, text: &str) {
    message(into, b'N', |body| {
        for (field, value) in [(b'S', "NOTICE"), (b'V', "NOTICE"), (b'C', "00000"), (b'M', text)] {
            body.push(field);
            string(body, value);
        }
        body.push(0);
    });
}

fn message(into: &mut Vec<u8>, tag: u8, fill: impl FnOnce(&mut Vec<u8>)) {
    into.push(tag);
    let start = into.len();
    into.extend([0; 4]);
    fill(into);
    // The limit of clients keeps a table far below 4 GiB, and a row is one of them.
    let length = u32::try_from(into.len() - start).unwrap_or(u32::MAX);
    into[start..start + 4].copy_from_slice(&length.to_be_bytes());
}

fn count(of: usize) -> [u8; 2] {
    u16::try_from(of).unwrap_or(u16::MAX).to_be_bytes()
}

fn string(into: &mut Vec<u8>, text: &str) {
    into.extend(text.bytes().filter(|byte| *byte != 0));
    into.push(0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_messages() {
        let mut table = Table::new(&["a", "b"], "si");
        table.rows.push(vec!["x".to_owned(), "12".to_owned()]);
        let a = b"a\0\0\0\0\0\0\0\0\0\0\x19\xff\xff\xff\xff\xff\xff\0\0";
        let b = b"b\0\0\0\0\0\0\0\0\0\0\x17\0\x04\xff\xff\xff\xff\0\0";
        let expected = [
            &b"T\0\0\0\x2e\0\x02"[..],
            a,
            b,
            b"D\0\0\0\x11\0\x02\0\0\0\x01x\0\0\0\x0212",
            b"C\0\0\0\x09SHOW\0",
            b"Z\0\0\0\x05I",
        ];
        assert_eq!(table.to_bytes(), expected.concat());
    }

    #[test]
    fn a_notice_is_a_message() {
        let mut bytes = Vec::new();
        notice(&mut bytes, "x");
        assert_eq!(bytes, b"N\0\0\0\x1fSNOTICE\0VNOTICE\0C00000\0Mx\0\0");
    }
}
