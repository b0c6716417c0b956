//! Bytes as hexadecimal digits: names of sessions, and holder secrets.

/// The bytes that hexadecimal digits stand for.
pub(super) fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let bytes = pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?)).collect();
    if rest.is_empty() { bytes } else { None }
}

/// Two digits a byte.
pub(super) fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hexadecimal_digits_come_in_pairs() {
        assert_eq!(from_hex("00fF"), Some(vec![0, 255]));
        assert_eq!(to_hex(&[0, 255]), "00ff");
        for text in ["0", "zz", "+1", "é"] {
            assert_eq!(from_hex(text), None, "{text}");
        }
    }
}
