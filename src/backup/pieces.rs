//! Where a stream of rows is cut. The places depend on the rows alone: after rows that were added or changed, the cuts of the next
//! backup fall together with those of this one again, and all pieces but a few are there already.

/// A piece has no cut before this many bytes.
const LEAST: usize = 512 << 10;
/// After [`LEAST`], one row of so many ends its piece.
const ONE_OF: u32 = 64;
/// A piece ends at the first row that reaches this many bytes.
const MOST: usize = 8 << 20;
/// Bytes of a piece of a file.
pub const FILE_PIECE: usize = 8 << 20;

/// Collects lines into pieces. Holds one piece, and one row beyond it.
#[derive(Debug, Default)]
pub struct Rows {
    piece: Vec<u8>,
    /// Where the row begins that is not whole yet.
    row: usize,
    rows: u64,
}

impl Rows {
    /// Takes bytes of the stream, split anywhere; gives the pieces that are finished.
    pub fn push(&mut self, mut bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut finished = Vec::new();
        while let Some(end) = memchr::memchr(b'\n', bytes) {
            let (line, rest) = bytes.split_at(end + 1);
            bytes = rest;
            self.piece.extend_from_slice(line);
            let row = &self.piece[self.row..];
            let ends = self.piece.len() >= MOST
                || (self.piece.len() >= LEAST && crc32fast::hash(row).is_multiple_of(ONE_OF));
            self.rows += 1;
            if ends {
                finished.push(std::mem::take(&mut self.piece));
            }
            self.row = self.piece.len();
        }
        self.piece.extend_from_slice(bytes);
        finished
    }

    /// What is left, and how many rows there were.
    pub fn finish(self) -> (Option<Vec<u8>>, u64) {
        ((!self.piece.is_empty()).then_some(self.piece), self.rows)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn cut(text: &[u8], step: usize) -> (Vec<Vec<u8>>, u64) {
        let mut rows = Rows::default();
        let mut pieces: Vec<Vec<u8>> = text.chunks(step).flat_map(|chunk| rows.push(chunk)).collect();
        let (last, count) = rows.finish();
        pieces.extend(last);
        (pieces, count)
    }

    fn rows(range: std::ops::Range<u32>) -> String {
        range
            .map(|row| {
                format!("{row}\t{}\n", hex::encode(row.wrapping_mul(2_654_435_761).to_be_bytes().repeat(9)))
            })
            .collect()
    }

    #[test]
    fn what_is_added_in_the_middle_leaves_most_pieces_as_they_are() {
        let (before, count) = cut(rows(0..60_000).as_bytes(), 1000);
        assert_eq!(count, 60_000);
        assert!(before.len() > 5, "{}", before.len());
        assert_eq!(before.concat(), rows(0..60_000).into_bytes());
        // However it comes.
        assert_eq!(cut(rows(0..60_000).as_bytes(), 77_777).0, before);
        let more = [rows(0..20_000), "new row\n".to_owned(), rows(20_000..60_500)].concat();
        let (after, _) = cut(more.as_bytes(), 1000);
        let known: HashSet<&Vec<u8>> = before.iter().collect();
        let new = after.iter().filter(|piece| !known.contains(piece)).count();
        assert!((1..=3).contains(&new), "{new} of {}", after.len());
    }

    #[test]
    fn a_piece_ends_between_rows_and_has_a_bound() {
        let long = [vec![b'x'; 20 << 20], b"\n".to_vec(), b"y\n".to_vec()].concat();
        let (pieces, count) = cut(&long, 1 << 20);
        assert_eq!((pieces.len(), count), (2, 2));
        assert_eq!(pieces[1], b"y\n");
        assert_eq!(cut(b"", 1), (Vec::new(), 0));
        // No row ends a piece but by its length.
        let same = "same row\n".repeat(4 << 20);
        let (pieces, _) = cut(same.as_bytes(), 1 << 20);
        assert!(pieces.iter().all(|piece| piece.len() <= MOST + 9 && piece.ends_with(b"\n")));
    }
}
