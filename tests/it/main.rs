//! The agent from outside: what it promises, against a scripted Loki, real files and real signals.
//!
//! One binary, so that it links once. `receiver`, `push`, `agent`, `files` and `expect` are the instruments;
//! the other modules are the tests.

mod agent;
mod big;
mod changes;
mod clients;
mod config;
mod core;
mod corrupt;
mod crash;
mod cri;
mod deadletter;
mod direct;
mod docker;
mod expect;
mod files;
mod floors;
mod generations;
mod loki;
mod outage;
mod path;
mod phases;
mod push;
mod receiver;
mod reload;
mod script;
mod sources;
mod spool;
mod stats;
mod stop;
mod stress;
mod user;
