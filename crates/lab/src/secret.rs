//! Random passwords.

/// A password could not be made.
#[derive(Debug, thiserror::Error)]
#[error("the kernel gave no random bytes for a password: {cause}")]
pub struct NoRandomness {
    /// What the kernel said.
    cause: getrandom::Error,
}

/// Random bytes in a password; it is twice as long in hexadecimal digits.
const PASSWORD_BYTES: usize = 12;

/// A new random password of hexadecimal digits, so that it needs no quoting anywhere.
///
/// # Errors
/// The kernel's random source failed.
pub fn password() -> Result<String, NoRandomness> {
    let mut bytes = [0_u8; PASSWORD_BYTES];
    getrandom::fill(&mut bytes).map_err(|cause| NoRandomness { cause })?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_differ_and_need_no_quoting() {
        let one = password().expect("the kernel has random bytes");
        assert_eq!(one.len(), PASSWORD_BYTES * 2);
        assert!(one.bytes().all(|b| b.is_ascii_hexdigit()));
        assert_ne!(one, password().expect("the kernel has random bytes"));
    }
}
