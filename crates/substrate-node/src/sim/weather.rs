//! What happens to the simulated network as a whole: gossip, deaths and returns, a cut and its end.
//!
//! Invariant: the dead and those beyond the cut hear nothing.
//! Absent by design: jobs.

use std::rc::Rc;

use substrate_record::ModelOffer;

use crate::event::{Action, Event};
use crate::terms::Audience;

use super::plan::{CIRCLE, Flaw};
use super::run::{Due, Sim, Word};

impl Sim<'_> {
    pub fn publish(
        &mut self,
        by: usize,
        audience: Audience,
        models: Vec<ModelOffer>,
        slots: u32,
        queue: u32,
    ) {
        if self.healed && self.plan.flaw == Some(Flaw::GossipMute) {
            return;
        }
        let Some(record) = self.machines[by].sign(models, slots, queue) else {
            return;
        };
        let word = Rc::new(Word {
            record,
            author: by,
            published: self.now,
        });
        match audience {
            Audience::Gossip => self.pass_on(by, by, &word),
            Audience::Circle => {
                let first = by - by % CIRCLE;
                for to in (first..(first + CIRCLE).min(self.plan.nodes)).filter(|to| *to != by) {
                    self.carry(by, to, &word, true);
                }
            }
        }
    }

    fn pass_on(&mut self, by: usize, except: usize, word: &Rc<Word>) {
        for to in self.neighbours[by].clone() {
            if to != except {
                self.carry(by, to, word, false);
            }
        }
    }

    fn carry(&mut self, by: usize, to: usize, word: &Rc<Word>, direct: bool) {
        self.rules.figures.gossip += 1;
        if self.draws.below(1_000) < self.plan.loss_permille || !self.reachable(by, to) {
            return;
        }
        if !direct && self.machines[to].seen.contains(&word.record.id()) {
            // It would be handed over once only.
            return;
        }
        let travel = self.latency(by, to);
        self.after(
            travel,
            Due::Gossip {
                to,
                from: by,
                word: Rc::clone(word),
                direct,
            },
        );
    }

    pub fn on_gossip(&mut self, to: usize, from: usize, word: Rc<Word>, direct: bool) {
        let now = self.machines[to].clock(self.now);
        // gossipsub tells of each message once.
        let first = self.machines[to].seen.insert(word.record.id());
        if self.machines[to].node.is_none() || !(first || direct) {
            return;
        }
        let event = Event::CapabilitySeen {
            record: word.record.clone(),
            from: self.ids[from],
            direct,
            attested: false,
        };
        let Some(node) = self.machines[to].node.as_mut() else {
            return;
        };
        let actions = node.handle(now, event);
        self.rules.figures.events += 1;
        let held = node.capacity().get(&self.ids[word.author]);
        if held.is_some_and(|held| held.id() == word.record.id()) {
            self.rules.heard(to, word.author, word.published);
        }
        for action in actions {
            self.trace.note(self.now, to, &action);
            match action {
                Action::Forward { .. } => self.pass_on(to, from, &word),
                other => self.perform(to, other),
            }
        }
    }

    pub fn start(&mut self, index: usize) {
        let seed = self.draws.next();
        self.machines[index].start(seed);
        for event in self.machines[index].first_reports(self.plan, &self.ids) {
            self.tell(index, event);
        }
        self.tell(index, Event::Tick);
        for other in self.neighbours[index].clone() {
            self.meet(index, other);
        }
    }

    fn meet(&mut self, a: usize, b: usize) {
        if !self.reachable(a, b) {
            return;
        }
        let rtt_ms = 2 * self.latency(a, b) as u32;
        for (to, node) in [(a, b), (b, a)] {
            let event = Event::PeerUp {
                node: self.ids[node],
                rtt_ms,
                session: self.machines[node].session(),
            };
            self.tell(to, event);
        }
    }

    pub fn kill(&mut self, index: usize) {
        let loud = self.draws.one_in(2);
        self.machines[index].stop();
        self.rules.asker_died(index);
        self.streams_of_the_dead(index, loud);
        let noticed = if loud { 200 } else { 4_000 };
        for other in self.neighbours[index].clone() {
            let life = self.machines[other].life;
            let event = Event::PeerDown {
                node: self.ids[index],
            };
            self.after(
                noticed,
                Due::Report {
                    to: other,
                    life,
                    event,
                },
            );
        }
        let back = 10_000 + self.draws.below(50_000);
        self.after(back, Due::Revive(index));
        let again = back + 60_000 + self.draws.below(200_000);
        if self.now + again < self.plan.span_ms {
            self.after(again, Due::Kill(index));
        }
    }

    pub fn set_cut(&mut self, cut: bool) {
        self.cut = cut;
        for a in 0..self.plan.nodes {
            for b in self.neighbours[a].clone() {
                if self.plan.side(a) == self.plan.side(b) {
                    continue;
                }
                if cut {
                    // Connections across the cut time out one by one.
                    let late = 5_000 + self.draws.below(10_000);
                    let life = self.machines[a].life;
                    self.after(
                        late,
                        Due::Report {
                            to: a,
                            life,
                            event: Event::PeerDown { node: self.ids[b] },
                        },
                    );
                } else if a < b {
                    self.meet(a, b);
                }
            }
        }
        if !cut {
            self.healed = true;
            self.rules.healed();
        }
    }
}
