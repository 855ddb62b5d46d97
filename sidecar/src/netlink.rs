//! Netlink, in which the kernel is told of rules, routes and addresses. In: messages. Out: whether they were done, and what
//! is there. Never knows what any of them is for.

pub(crate) mod message;
pub(crate) mod socket;
