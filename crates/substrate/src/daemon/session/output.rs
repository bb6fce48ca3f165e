//! The commitment to what an attempt has brought, for answers in words and for vectors.
//!
//! Words are committed to by their ids, those resumed and the attempt's own together. Vectors are committed to by
//! their bytes, row by row; a later attempt is asked for the texts that are left, so it commits to its own rows.
//!
//! Invariant: both sides keep this alike, so equal outputs give equal commitments at every count.
//! Absent by design: the rows themselves.

use sha2::{Digest, Sha256};
use substrate_record::{Commitment, Salt};

/// The commitments to the rows of one attempt, after none, one, two…
pub struct Rows {
    hash: Sha256,
    marks: Vec<Commitment>,
}

impl Rows {
    /// No row yet.
    pub fn new(salt: &Salt) -> Self {
        let hash = Sha256::new_with_prefix(salt.as_bytes());
        let mut rows = Self {
            hash,
            marks: Vec::new(),
        };
        rows.mark();
        rows
    }

    /// One more row. A manifest bounds how many there are.
    pub fn push(&mut self, row: &[u8]) {
        self.hash.update(row);
        self.mark();
    }

    fn mark(&mut self) {
        let digest: [u8; 32] = self.hash.clone().finalize().into();
        self.marks.push(Commitment::from_bytes(digest));
    }

    /// The commitment to the first `count` rows, if there are as many.
    pub fn after(&self, count: u32) -> Option<Commitment> {
        self.marks.get(count as usize).copied()
    }

    /// The commitment to all of them.
    pub fn whole(&self) -> Commitment {
        // There is one of no row at least.
        self.marks
            .last()
            .copied()
            .unwrap_or(Commitment::from_bytes([0; 32]))
    }
}

/// Whether bytes are components that can be calculated with.
pub fn is_vector(bytes: &[u8]) -> bool {
    let finite = |four: &[u8; 4]| f32::from_le_bytes(*four).is_finite();
    let (components, rest) = bytes.as_chunks::<4>();
    !components.is_empty() && rest.is_empty() && components.iter().all(finite)
}

#[cfg(test)]
mod tests {
    use substrate_record::commit;

    use super::*;

    #[test]
    fn rows_are_committed_to_as_their_bytes_one_after_the_other() {
        let salt = Salt::from_bytes([7; 32]);
        let mut rows = Rows::new(&salt);
        rows.push(b"abcd");
        rows.push(b"efgh");
        let counts = [0, 1, 2, 3].map(|count| rows.after(count));
        let of = |bytes: &[u8]| Some(commit(&salt, bytes));
        assert_eq!(counts, [of(b""), of(b"abcd"), of(b"abcdefgh"), None]);
        assert_eq!(Some(rows.whole()), counts[2]);
    }
}
