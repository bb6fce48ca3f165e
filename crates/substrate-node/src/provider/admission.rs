//! Whether this node takes an offer: every reason not to, cheapest and most telling first.
//!
//! Invariant: the scope is checked here from the provider's own facts, whatever the requester's routing believed;
//! lending off means no job of another, in any scope.
//! Absent by design: the queue's state (that is the queue's), and any trust in the manifest's numbers.

use substrate_record::{NodeId, Scope};

use crate::limits::{MAX_DEADLINE_MS, MAX_TOKENS};
use crate::terms::{Refusal, Terms};
use crate::world::World;

/// Checks an offer against everything that does not change with the queue.
pub(crate) fn admit(world: &World, from: NodeId, terms: &Terms) -> Result<(), Refusal> {
    if world.draining {
        return Err(Refusal::Draining);
    }
    permitted(world, from, terms)?;
    if !world.models.contains_key(&terms.entry) {
        return Err(Refusal::UnknownEntry);
    }
    let walled = world
        .config
        .walls
        .iter()
        .any(|wall| wall.satisfies(terms.wall));
    if !walled || (terms.isolated && !world.config.isolated) {
        return Err(Refusal::WallUnmet);
    }
    if terms.max_tokens > MAX_TOKENS
        || terms.resume_tokens > MAX_TOKENS
        || terms.deadline_ms > MAX_DEADLINE_MS
    {
        return Err(Refusal::TooLarge);
    }
    if terms.deadline_ms == 0 {
        return Err(Refusal::DeadlinePassed);
    }
    Ok(())
}

/// What the owner's settings, the circle and the registry say. Asked again whenever one of them changes, of running work too.
pub(crate) fn permitted(world: &World, from: NodeId, terms: &Terms) -> Result<(), Refusal> {
    let own = from == world.own();
    if !world.in_scope(terms.scope, &from) {
        return Err(Refusal::OutOfScope);
    }
    if !world.valid_in(terms.scope, &terms.entry) {
        return Err(Refusal::EntryNotValid);
    }
    if own {
        return Ok(());
    }
    let lent = world.lent().ok_or(Refusal::LendingOff)?;
    // A stranger's job is a commons job, whatever its manifest calls it; a circle's member may send either.
    let needed = if world.circle.contains(&from) {
        Scope::Circle
    } else {
        Scope::Commons
    };
    if lent.widest < needed {
        return Err(Refusal::LendingOff);
    }
    let refused = !lent.admits(&from)
        || lent.refused_entries.contains(&terms.entry)
        || lent.refused_kinds.contains(&terms.kind);
    if refused {
        Err(Refusal::OwnerRefuses)
    } else {
        Ok(())
    }
}
