//! Batches of heads of many shapes, and where each head's part of an array lies.

use kvsculpt::engine::{Dims, Engine, Head, WEIGHT_ROWS};

/// Heads laid one after the other, some of them in the table.
pub struct Batch {
    pub dims: Dims,
    pub heads: Vec<Head>,
    /// Which heads are in the table.
    pub active: Vec<bool>,
    random: fastrand::Rng,
}

impl Batch {
    /// Heads of `(rows, pairs)`; of these, `active` are in the table.
    pub fn new((dim, value_dim): (u32, u32), shapes: &[(u32, u32)], active: &[usize]) -> Self {
        let mut next = Head::default();
        let mut heads = Vec::new();
        for &(rows, pairs) in shapes {
            heads.push(Head { rows, pairs, ..next });
            next.index += 1;
            next.row += rows;
            next.pair += pairs;
            next.square += pairs * pairs;
            next.weights += rows.min(WEIGHT_ROWS) * pairs;
        }
        Self {
            dims: Dims { dim, value_dim },
            active: (0..shapes.len()).map(|head| active.contains(&head)).collect(),
            heads,
            random: fastrand::Rng::with_seed(u64::from(dim) << 32 | u64::from(next.row + next.pair)),
        }
    }

    /// Every head in the table.
    pub fn all(dims: (u32, u32), shapes: &[(u32, u32)]) -> Self {
        Self::new(dims, shapes, &(0..shapes.len()).collect::<Vec<_>>())
    }

    /// The same batch with every head in the table.
    pub fn all_active(mut self) -> Self {
        self.active.fill(true);
        self
    }

    pub fn dim(&self) -> usize {
        self.dims.dim as usize
    }

    pub fn value_dim(&self) -> usize {
        self.dims.value_dim as usize
    }

    /// Floats in a row of a state or error array.
    pub fn state_row(&self) -> usize {
        self.dims.state_row() as usize
    }

    pub fn rows(&self) -> usize {
        self.heads.iter().map(|head| head.rows as usize).sum()
    }

    pub fn pairs(&self) -> usize {
        self.heads.iter().map(|head| head.pairs as usize).sum()
    }

    pub fn squares(&self) -> usize {
        self.heads.iter().map(|head| (head.pairs * head.pairs) as usize).sum()
    }

    pub fn weights(&self) -> usize {
        self.heads
            .iter()
            .map(|head| (head.rows.min(WEIGHT_ROWS) * head.pairs) as usize)
            .sum()
    }

    /// Each head, and whether it is in the table.
    pub fn each(&self) -> impl Iterator<Item = (&Head, bool)> {
        self.heads.iter().zip(self.active.iter().copied())
    }

    /// The heads in the table.
    pub fn chosen(&self) -> Vec<Head> {
        self.each().filter(|(_, active)| *active).map(|(head, _)| *head).collect()
    }

    /// A table of the chosen heads; made for all and narrowed where some are left out, as a solver does when heads stop.
    pub fn table<E: Engine>(&self, engine: &mut E) -> E::Table {
        let chosen = self.chosen();
        let mut table = engine.table(self.dims, &self.heads).unwrap();
        if chosen.len() < self.heads.len() {
            engine.set_table(&mut table, &chosen).unwrap();
        }
        table
    }

    /// Numbers of no symmetry: mean 0.2 of the spread, standard deviation about the spread.
    pub fn random(&mut self, len: usize, spread: f32) -> Vec<f32> {
        let random = &mut self.random;
        (0..len)
            .map(|_| spread * ((0..3).map(|_| random.f32() * 2.0 - 1.0).sum::<f32>() + 0.2))
            .collect()
    }

    /// The same seed's next whole number below `limit`.
    pub fn below(&mut self, limit: usize) -> usize {
        self.random.usize(..limit)
    }
}

/// Shapes below, at and above the tiles any kernel uses, over the channel counts models have.
pub fn batches() -> Vec<Batch> {
    vec![
        Batch::all((32, 32), &[(1, 1)]),
        Batch::new((32, 32), &[(63, 31), (2, 33), (64, 65), (130, 1)], &[0, 2, 3]),
        Batch::all((64, 64), &[(700, 130)]),
        Batch::new((64, 64), &[(33, 64), (65, 63), (31, 2), (1, 130), (64, 32)], &[1, 3, 4]),
        Batch::all((80, 80), &[(65, 33), (32, 64), (130, 31)]),
        Batch::new((96, 96), &[(33, 65), (2, 2), (64, 130)], &[0, 2]),
        Batch::all((128, 128), &[(130, 64), (63, 65), (31, 33)]),
        Batch::all((256, 256), &[(33, 32), (64, 31), (2, 65)]),
        Batch::all((64, 32), &[(65, 65), (130, 33), (32, 1)]),
        Batch::new((96, 128), &[(63, 64), (31, 130), (1, 32)], &[1, 2]),
    ]
}

/// Where a head's rows lie in an array of `width` floats a row.
pub fn rows<'a, T>(head: &Head, array: &'a [T], width: usize) -> &'a [T] {
    &array[head.row as usize * width..][..head.rows as usize * width]
}

/// Where a head's pairs lie in an array of `width` floats a pair.
pub fn pairs<'a, T>(head: &Head, array: &'a [T], width: usize) -> &'a [T] {
    &array[head.pair as usize * width..][..head.pairs as usize * width]
}

/// A head's square of `gram` or `factor`.
pub fn square<'a, T>(head: &Head, array: &'a [T]) -> &'a [T] {
    &array[head.square as usize..][..(head.pairs * head.pairs) as usize]
}

/// A head's block of `weights`.
pub fn weights<'a, T>(head: &Head, array: &'a [T]) -> &'a [T] {
    &array[head.weights as usize..][..(head.rows.min(WEIGHT_ROWS) * head.pairs) as usize]
}

/// The same places of an array with `width` floats a head.
pub fn of_head<'a, T>(head: &Head, array: &'a [T], width: usize) -> &'a [T] {
    &array[head.index as usize * width..][..width]
}
