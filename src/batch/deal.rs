//! Which heads go to which of the machines that share them.

use std::num::NonZeroU32;

/// Deals heads of these costs out to as many machines as there are shares, each machine as much of all cost as its share is of all shares:
/// a pure function of costs and shares. The dearest heads are dealt out first, each to the machine that it fills least; equal shares are
/// filled as the parts of [`Shard`](super::Shard) are. Returns each machine's heads, ascending; every head is in exactly one place, and a
/// machine may have none.
///
/// ```
/// use std::num::NonZeroU32;
/// use kvsculpt::batch::deal;
///
/// let share = |share| NonZeroU32::new(share).expect("not 0");
/// assert_eq!(deal(&[5; 6], &[share(1), share(1)]), [vec![0, 2, 4], vec![1, 3, 5]]);
/// assert_eq!(deal(&[5; 6], &[share(2), share(1)]), [vec![0, 1, 3, 4], vec![2, 5]]);
/// ```
#[must_use]
pub fn deal(costs: &[u64], shares: &[NonZeroU32]) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..costs.len()).collect();
    // Stable, so that equal costs stay in their order.
    order.sort_by_key(|&head| std::cmp::Reverse(costs[head]));
    let mut loads = vec![0_u128; shares.len()];
    let mut dealt = vec![Vec::new(); shares.len()];
    for head in order {
        // A head that costs nothing counts still, or all such heads would go to one machine.
        let cost = u128::from(costs[head].max(1));
        let filled = |&machine: &usize, other: &usize| {
            let [one, other] = [machine, *other].map(|machine| (loads[machine] + cost, u128::from(shares[machine].get())));
            // Quotients compared without division; a load of 2⁶⁴ heads of 2⁶⁴ is beyond any cache.
            one.0.saturating_mul(other.1).cmp(&other.0.saturating_mul(one.1))
        };
        let Some(machine) = (0..shares.len()).min_by(filled) else { break };
        loads[machine] += cost;
        dealt[machine].push(head);
    }
    for heads in &mut dealt {
        heads.sort_unstable();
    }
    dealt
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::Shard;

    fn shares(numbers: &[u32]) -> Vec<NonZeroU32> {
        numbers.iter().map(|&number| NonZeroU32::new(number).unwrap()).collect()
    }

    #[test]
    fn equal_shares_are_shards_where_costs_are_equal() {
        for count in 1..5_usize {
            let shards: Vec<Vec<usize>> = (0..count)
                .map(|index| Shard::new(index, count).unwrap().members(&[7; 11]))
                .collect();
            assert_eq!(deal(&[7; 11], &shares(&vec![3; count])), shards);
        }
    }

    #[test]
    fn every_head_is_dealt_once_and_loads_follow_the_shares() {
        let mut random = fastrand::Rng::with_seed(9);
        let costs: Vec<u64> = (0..60).map(|_| random.u64(0..1000)).collect();
        let all: u64 = costs.iter().map(|&cost| cost.max(1)).sum();
        for numbers in [vec![1], vec![1, 1, 1], vec![5, 1], vec![3, 2, 7, 1]] {
            let dealt = deal(&costs, &shares(&numbers));
            let mut heads = dealt.concat();
            heads.sort_unstable();
            assert_eq!(heads, (0..60).collect::<Vec<_>>());
            for (heads, &share) in dealt.iter().zip(&numbers) {
                assert!(heads.is_sorted());
                let load: u64 = heads.iter().map(|&head| costs[head].max(1)).sum();
                let due = all as f64 * f64::from(share) / f64::from(numbers.iter().sum::<u32>());
                assert!((load as f64 - due).abs() <= 1000.0, "{load} of {due}");
            }
        }
    }

    #[test]
    fn machines_beyond_the_heads_get_none() {
        assert_eq!(deal(&[4], &shares(&[1, 1, 9])), [vec![], vec![], vec![0]]);
        assert_eq!(deal(&[], &shares(&[1, 1])), [vec![], vec![]] as [Vec<usize>; 2]);
        assert!(deal(&[4], &[]).is_empty());
    }
}
