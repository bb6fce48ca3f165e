//! Chance that can be repeated.

/// Knuth's MMIX generator.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        let mut dice = Self(seed);
        // Neighbouring seeds begin alike.
        for _ in 0..4 {
            dice.roll(2);
        }
        dice
    }

    /// A number below `sides`, which is not 0.
    pub fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }

    pub fn below(&mut self, most: usize) -> usize {
        usize::try_from(self.roll(most.max(1) as u64)).unwrap_or(0)
    }

    /// A number that is often at an edge.
    pub fn edge(&mut self) -> u64 {
        match self.roll(5) {
            0 => 0,
            1 => u64::MAX,
            2 => u64::from(u32::MAX),
            3 => self.roll(1 << 30),
            _ => self.roll(8),
        }
    }

    pub fn edge32(&mut self) -> u32 {
        u32::try_from(self.edge() & u64::from(u32::MAX)).unwrap_or(0)
    }

    pub fn bytes(&mut self, most: usize) -> Vec<u8> {
        let count = self.below(most);
        (0..count).map(|_| self.roll(256) as u8).collect()
    }
}
