//! What happens before what, within a cluster: a vector clock for each thread.
//!
//! Time counts synchronisations. A thread's vector holds, for every agent (thread or `mbarrier`, the latter on behalf of the bulk copies
//! that it completes), the time up to which that agent's accesses are ordered before the thread. A second vector holds the same for
//! orderings with a proxy fence on the way, which is what the asynchronous proxy asks for.

use std::ops::Range;
use std::rc::Rc;

/// Most `mbarrier` objects of a cluster.
pub const MAX_BARRIERS: usize = 64;

/// Who touches memory: an agent of one cluster of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Agent {
    /// Number among all agents of the launch, from 1.
    pub id: u32,
    /// Number in its cluster.
    pub slot: usize,
}

/// Two vectors, over agents: ordered before, and ordered before with a proxy fence on the way.
#[derive(Clone, Debug, Default)]
pub struct Order {
    seen: Vec<u32>,
    fenced: Vec<u32>,
}

impl Order {
    fn none(threads: usize) -> Self {
        Order { seen: vec![0; threads + MAX_BARRIERS], fenced: vec![0; threads + MAX_BARRIERS] }
    }

    fn join(&mut self, other: &Order) {
        self.seen.iter_mut().zip(&other.seen).for_each(|(a, b)| *a = (*a).max(*b));
        self.fenced.iter_mut().zip(&other.fenced).for_each(|(a, b)| *a = (*a).max(*b));
    }

    fn includes(&self, other: &Order) -> bool {
        let all = |a: &[u32], b: &[u32]| a.iter().zip(b).all(|(a, b)| a >= b);
        all(&self.seen, &other.seen) && all(&self.fenced, &other.fenced)
    }
}

/// The clocks of a cluster.
pub struct Clocks {
    /// Identity of agent 0, less 1.
    base: u32,
    threads: usize,
    now: u32,
    /// Threads that have met share one.
    of: Vec<Rc<Order>>,
}

impl Clocks {
    /// Clocks for the `cluster`-th cluster of a launch, of `threads` threads.
    pub fn new(cluster: u32, threads: usize) -> Self {
        let base = cluster * (threads + MAX_BARRIERS) as u32;
        // All share one until they part.
        let none = Rc::new(Order::none(threads));
        Clocks { base, threads, now: 1, of: vec![none; threads] }
    }

    pub fn threads(&self) -> usize {
        self.threads
    }

    pub fn now(&self) -> u32 {
        self.now
    }

    pub fn thread(&self, slot: usize) -> Agent {
        Agent { id: self.base + slot as u32 + 1, slot }
    }

    /// The agent of the cluster's `number`-th barrier.
    pub fn barrier(&self, number: usize) -> Agent {
        self.thread(self.threads + number)
    }

    fn slot_of(&self, id: u32) -> Option<usize> {
        let slot = id.wrapping_sub(self.base + 1) as usize;
        (slot < self.threads + MAX_BARRIERS).then_some(slot)
    }

    /// Whether an agent is of this cluster: others are ordered with nobody here.
    pub fn knows(&self, id: u32) -> bool {
        self.slot_of(id).is_some()
    }

    /// Whether an access by agent `id` at `time` is ordered before what agent `slot`, after `order`, does now.
    pub fn before(&self, id: u32, time: u32, order: &Order, slot: usize) -> bool {
        self.slot_of(id).is_some_and(|s| s == slot || time <= order.seen[s])
    }

    /// The same for an access of the asynchronous proxy after one of the generic proxy.
    pub fn before_async(&self, id: u32, time: u32, order: &Order) -> bool {
        // What bulk copies wrote is in the asynchronous proxy already.
        self.slot_of(id).is_some_and(|s| time <= if s < self.threads { order.fenced[s] } else { order.seen[s] })
    }

    pub fn of(&self, slot: usize) -> &Order {
        &self.of[slot]
    }

    /// What is ordered before all of some threads, their own accesses included if all see them.
    pub fn common(&self, slots: Range<usize>) -> Rc<Order> {
        let first = &self.of[slots.start];
        if self.of[slots.clone()].iter().all(|o| Rc::ptr_eq(o, first)) {
            return first.clone();
        }
        let mut order = (**first).clone();
        for other in &self.of[slots] {
            order.seen.iter_mut().zip(&other.seen).for_each(|(a, b)| *a = (*a).min(*b));
            order.fenced.iter_mut().zip(&other.fenced).for_each(|(a, b)| *a = (*a).min(*b));
        }
        Rc::new(order)
    }

    /// Adds everything that a thread has done and seen to what a barrier releases.
    pub fn release_into(&mut self, released: &mut Order, slot: usize) {
        let order = &self.of[slot];
        if released.seen.is_empty() {
            *released = (**order).clone();
        } else {
            released.join(order);
        }
        released.seen[slot] = self.now;
        self.now += 1;
    }

    /// Everything that some threads have done and seen.
    pub fn release(&mut self, slots: Range<usize>) -> Order {
        let mut released = (*self.of[slots.start]).clone();
        let mut last = self.of[slots.start].clone();
        for slot in slots.clone() {
            if !Rc::ptr_eq(&last, &self.of[slot]) {
                last = self.of[slot].clone();
                released.join(&last);
            }
        }
        released.seen[slots].fill(self.now);
        self.now += 1;
        released
    }

    /// Orders what was released before some threads.
    pub fn acquire(&mut self, slots: Range<usize>, released: &Order) {
        let mut made: Option<(Rc<Order>, Rc<Order>)> = None;
        for slot in slots {
            let old = self.of[slot].clone();
            let new = match &made {
                Some((from, to)) if Rc::ptr_eq(from, &old) => to.clone(),
                _ if old.includes(released) => continue,
                _ => {
                    let mut order = (*old).clone();
                    order.join(released);
                    Rc::new(order)
                }
            };
            made = Some((old, new.clone()));
            self.of[slot] = new;
        }
    }

    /// A barrier among some threads.
    pub fn meet(&mut self, slots: Range<usize>) {
        let all = Rc::new(self.release(slots.clone()));
        self.of[slots].fill(all);
    }

    /// Adds to what a barrier releases that its copies have landed now.
    pub fn landed(&mut self, released: &mut Order, barrier: usize) {
        if released.seen.is_empty() {
            *released = Order::none(self.threads);
        }
        released.seen[self.threads + barrier] = self.now;
        self.now += 1;
    }

    /// A proxy fence: what the thread did and has seen is ordered for the asynchronous proxy too.
    pub fn fence(&mut self, slot: usize) {
        let order = Rc::make_mut(&mut self.of[slot]);
        order.seen[slot] = self.now;
        order.fenced.iter_mut().zip(&order.seen).for_each(|(f, s)| *f = (*f).max(*s));
        self.now += 1;
    }
}
