// Package systemd runs each incarnation in a transient scope of its own, asked
// of PID 1 over D-Bus. The child waits at its gate until systemd has put it
// under its limits, which is read back from the kernel and not believed; then
// it becomes the program.
//
// # The cell
//
// The scope gladsheim-web-0000000b.scope lies in a slice that belongs to it
// alone, gladsheim-web\x2d0000000b.slice, here called its cell, in
// gladsheim.slice. The limits are the scope's; the cell is there for the
// counters.
//
// systemd removes the cgroup of a scope as soon as its last process has ended,
// and the counters with it: the OOM kills, the peak of memory, the CPU time. An
// unreaped zombie does not keep it. Who reads at the moment of the exit races
// with PID 1; on hosts with nothing else to do, 2 to 35 of 100 readings came
// too late, and under load most. What systemd itself remembers does not
// replace them: the cause of an end is kept only for units that failed, the
// peak only since 255, and a reference that keeps a unit loaded (AddRef) is not
// to be had on systemd's own socket and ends with the connection.
// A slice stays until it is stopped. Its counters hold what the scope below it
// used, on every version, and also when the agent was away at the end. They
// start at zero with each incarnation. Of several hundred ends none was missed,
// for a quarter more of PID 1's time when one service starts and for nothing
// measurable when many do.
//
// # What is believed
//
// The D-Bus answers and signals are taken as news, never as the truth: whether
// a child is in its scope is read from /proc/PID/cgroup, whether something is
// left from cgroup.events, limits from the cgroup's files.
//
// # What is written
//
// Limits are changed through SetUnitProperties alone, because systemd rewrites
// what others wrote. Two files are written all the same: memory.oom.group, where
// systemd (before 253) has no property for it, again whenever it is found
// rewritten; and cpu.max of those who are about to be killed, who need CPU time
// to die, even when PID 1 does not answer.
package systemd
