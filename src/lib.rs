//! # log-capturer: the living map
//!
//! A synchronous, thread-based log agent: it captures log files, containers (and standard input), passes the lines through
//! a pipeline, and delivers them to Loki, files and standard output. No async runtime, no unsafe code. Its four
//! promises, in this order: nothing leaks, nothing is lost silently, nothing is doubled where the sink can
//! tell, and it costs next to nothing.
//!
//! To understand the whole path in ten minutes, read this page, then [`agent`], [`record`], [`ack`] and
//! [`dispatcher::lane`], in this order.
//!
//! ## The picture
//!
//! ```text
//!   a line enters                                                                        a line leaves
//!   ------------------->------------------->------------------->------------------->---------------->
//!
//!   files ──────┐            intake 0..n, by source          inlet             jobs 0..k, by source
//!   containers ─┼─ Outlet ──▶ worker/0..n (the pool) ──▶ lane/loki ──▶ sender/loki/0..k ─▶ Loki
//!   stdin ──────┘  chunk+ack  (pipeline)           └───▶ lane/file ──▶ sender/file/0    ─▶ disk
//!                                                      │  ▲ reports ◀─────────┘
//!                                                      │  └─ "try again" ◀─ retry (the scheduler)
//!   ledger (checkpoints) ◀── receipts per sink ◀── the share was settled: by the sink, or the lane's spool took it
//!
//!   <-------------------<-------------------<-------------------<-------------------<----------------
//!                                    the acknowledgement returns
//! ```
//!
//! Where no stage looks at lines there are no workers: an Outlet deals its chunks to the lanes itself ([`record::Dealer`]).
//!
//! The unit of travel is the **chunk**: many whole lines of one source in one buffer, never a single line. Its
//! **ack** has one **share** per sink; a share is divided as its lines land in several **batches**, and each
//! part sends a **receipt** to the ledger when it ends. A read position moves only on receipts; the position of a restart
//! is the least over the sinks. A log file is its own first buffer: when we stop reading, nothing is lost. A sink with
//! a [`spool`] that stays ill lets its lane write to disk what waits, and reading goes on.
//!
//! What survives a crash: the ledger's checkpoint, the journal of stamps that the Outlet of the files writes before a
//! chunk leaves, and what file sinks and spools find at the start in their own folders, which counts as receipts. So
//! the same bytes get the same numbers and times again, and only those sinks that lack them. Containers need no journal:
//! their numbers are derived from what they are and from their first line.
//!
//! Four more words: a **generation** is one life of a file, until it is truncated or replaced; a **lineage** is all
//! generations that follow each other at one place, and what order holds for. A **parcel** is what is dealt
//! to one lane: the records of a chunk (shared by all lanes) and that lane's share. A **street** is a lane's way to
//! one of its connections: a batch goes down, a report comes back.
//!
//! ## Floors
//!
//! A module imports only from floors below its own; siblings on one floor do not know each other
//! (`tests/it/floors.rs` reads the imports and holds this table).
//!
//! | floor | place | what lives there |
//! |---|---|---|
//! | 9 | `main.rs`, [`cli`] | arguments, logger, exit code; one file per subcommand |
//! | 8 | [`agent`] | THE wiring: every channel and every thread, along the path, and the stop |
//! | 7 | [`config`] | the modules' own options put together; every complaint at once |
//! | 6 | [`status`] over [`stats`] | the HTTP server and what it shows, reads snapshots only; rates, the last quarter of an hour, the leak watch |
//! | 5 | [`dispatcher`] | worker pool (if there is a pipeline), lanes, batches (pure), senders, retry scheduler, back-off (pure) |
//! | 4 | [`monitors`] | the Outlet, the only door in; files: discovery, watch, tail, framing (pure); containers: the engine's API, frames, lines and cursors (pure); stdin |
//! | 4 | [`pipeline`] | compiled stages, chunk in, records out (pure) |
//! | 4 | [`sinks`] | `Encoder` (pure) and `Sender` of each sink; the file sink notes in a journal what it is about to write, and writes what is much past the page cache |
//! | 4 | [`spool`] | what a sink could not take, on disk, in order; its lane owns it |
//! | 4 | [`deadletter`] | refused records, kept, and taken away again by `log-capturer deadletter` |
//! | 3 | [`ledger`] | the journal of stamps, checkpoints, progress and account per generation and sink |
//! | 2 | [`record`] over [`ack`], [`budget`] | what travels; what returns; how much may be under way |
//! | 1 | [`net`] over [`tasks`] | connect and resolve that can be interrupted; spawn, watch, stop, join |
//! | 0 | [`clock`], [`cri`], [`durable`], [`glob`], [`metrics`], [`order`], [`sync`] over [`error`], [`disk`] | time, a format that two floor mates read, files that survive, patterns, counters, a sort for all types, locks or their model and what is shared, sentences |
//!
//! ## Threads
//!
//! All are spawned by [`tasks::TaskManager`] in one scope, but for those that may be left behind, by name, since
//! they may hang in a call that nobody can interrupt (`resolver`, `reload`), and those that come and go
//! ([`tasks::Helpers`]). One law: **downhill may wait, uphill never waits**: a thread waits for room only
//! in front of a higher rank, so nobody waits in a circle.
//!
//! | thread | rank | waits for | ends when |
//! |---|---|---|---|
//! | `main` | - | ends, signals, deadlines | everybody else has ended, or the deadline has passed |
//! | `signals` | - | signals | told so, at the end |
//! | `watch` | 0 | inotify | stop |
//! | `discovery` | 1 | time, hints | stop; with `--once` after one sweep |
//! | `files` | 1 | hints, time, room in the budget; room in an intake; `watch`, at the end | stop; with `--once` when all is read |
//! | `containers` | 1 | the engine's events, reports of its readers, time | stop; with `--once` when all is read |
//! | `c/<id>` | 1 | a container's log; room in the budget or an intake | stop, or the container is dead and read to its end |
//! | `stdin` | 1 | input; room in the budget or an intake | stop, or end of input |
//! | `worker/<i>` | 2 | chunks; room in an inlet | its intake is closed and empty; there is none without a pipeline |
//! | `lane/<sink>` | 3 | parcels, reports, time; never for room | its inlet is closed and all is answered for or let go |
//! | `sender/<sink>/<i>` | 4 | a batch; its sink, until `abort` | its jobs are closed |
//! | `retry` | 4 | resting sinks | the lanes are gone |
//! | `ledger` | 5 | notes | the last carrier is gone |
//! | `resolver` | - | names | told so, at the end; at once if no sink looks one up |
//! | `reload` | - | the disk; after SIGHUP only | it has read the configuration |
//! | `stats` | - | the next sample, every 5 s, or 30 s while nothing happens and nobody asks | told so, last of all |
//! | `status` | - | clients | told so, last of all |
//!
//! Lane, senders and retry are the only place where things travel in both directions. There at most one batch per
//! connection is away from its lane and every channel has room for all of them, so nobody on it waits for room.
//! Channels are declared with both their ends ([`tasks::Wires`]), and one that waits uphill cannot be made. Where
//! threads meet without a channel ([`ack`], [`budget`], the task table), loom goes through every interleaving
//! (`make model`).
//!
//! ## The stop
//!
//! [`tasks::Stop`] is two things that close once: `stop` for those who bring data in, `abort` for everyone who
//! may wait. [`tasks::StopPlan`] (pure) says when. With nothing pending the whole stop takes milliseconds: the
//! monitors end, and everybody downhill ends because the channel above is closed.
//!
//! ## The reload
//!
//! A new configuration (SIGHUP, or `POST /api/v1/reload`) is read and checked beside the running house; a wrong one
//! changes nothing. For a right one the house stops as it always does, within `stop_timeout`, and [`agent::run`]
//! begins another life in the same process: positions are in the ledger, so nothing is lost. Signals stay caught, the
//! lock of `data_dir` is held and the address of the status server stays open in between. If the new life cannot be
//! made (a port that is taken), the configuration before it runs again. A stop that comes meanwhile wins; a thread
//! that hangs ends the process with 4, as in every stop. Counters and the last quarter of an hour begin anew with
//! each life, but for `log_capturer_reloads_total`; a half line that was read from standard input is shipped as a line.
//!
//! ## Where this differs from the first design, and why
//!
//! * **`record` stands over `ack` and `budget`**: a chunk contains both. `net` stands over `tasks`: a connect
//!   must see `abort`.
//! * **The credit lives in the buffer that it pays for** and returns when the buffer is freed, not when the last
//!   share ends: so the account cannot drift from the memory.
//! * **One batch per connection is away**, not more: it keeps order without sequence numbers when a sink falls
//!   ill in the middle.
//! * **What came through a stream and was not delivered at the stop becomes dead letters** where its sink has no
//!   spool, or a full one: nobody can read it again.
//! * **The spool keeps how far it was sent in a file of its own**, not in the checkpoint: that file is written after
//!   each answer and outlives the process, so a death repeats only what was on its way. It says of which boot it is:
//!   after a power cut only what two checkpoints have made safe is believed. The ledger keeps which ranges stand in a
//!   spool and nowhere else, so what is missing there is read again.
//! * **After a sync that failed nothing is believed** before it was written again ([`durable::Written`]): the kernel tells
//!   of a failure once, and may call clean what it has dropped. So whoever writes an output, a spool or a journal writes
//!   through that, and the ledger, which syncs, writes again.
//! * **The binary has one heap for all threads** (`main.rs`), not the C library's arena for each: chunks are freed by
//!   other threads than those that asked for them, and what lay between the arenas was a third of the process.
//! * **Ledger, worker and lane linger a millisecond or two behind what is small**: a line in each of a thousand files would
//!   wake three threads for each of them, which costs more than the line. Nobody lingers behind 16 KiB. For the same
//!   reason such lines are stamped in groups, with one write to the journal for all of them.
//! * **Where lines end is found when somebody asks** ([`record::Ends`]): a file that goes on as it is needs to be counted only.
//!   Where a sink asks for each line anyway, it is found when the line is read, while its bytes are at hand.
//! * **The pool is there if it has something to do**: to wake a worker that only passes on what it gets costs
//!   more than all that it would do.
//! * **A backlog is written past the page cache, from where it was read** ([`disk::Paged`], [`record::Shift`],
//!   [`record::PageSums`]): a chunk is laid in memory as the output will have it, page on page, and summed up while it still
//!   is in the cache of the processor that has read it; so the sender never looks at its bytes, and the kernel copies
//!   nothing. That where it should lie is a hint, and the one thing beside the acknowledgement that goes uphill. It costs
//!   the reach of the page cache: a sender waits for the disk as it writes, not at the next sync. Nothing
//!   goes past the cache over what is in the cache alone: a power cut would leave a hole there. Whole pages are torn as
//!   pages, and their entries in the journal say so.
//! * **Outputs get no room in advance**, although that would save a sixth of a write on ext4: what stands behind the end can be
//!   given back by a truncation alone, and that cuts off what another process appends at the same moment.
//! * **The status server is our own loop around `tiny_http`'s responses**: `tiny_http::Server` reads each client
//!   in a thread of a pool that grows with every idle client, cannot be bounded, and ends for good on the first
//!   error of `accept` (`status/mod.rs` tells more).
//!
//! ## Not here yet, and where it will live
//!
//! Elasticsearch and others (`sinks/`).

#![forbid(unsafe_code)]

pub mod ack;
pub mod agent;
pub mod budget;
pub mod cli;
pub mod clock;
pub mod config;
pub mod cri;
pub mod deadletter;
pub mod disk;
pub mod dispatcher;
pub mod durable;
pub mod error;
pub mod glob;
pub mod ledger;
pub mod metrics;
pub mod monitors;
pub mod net;
pub mod order;
pub mod pipeline;
pub mod record;
pub mod sinks;
pub mod spool;
pub mod stats;
pub mod status;
pub mod sync;
pub mod tasks;
