// Package power cuts the power of hosts, and pauses them. Its tests run where the
// machines are emulated, since nothing inside of one outlives that: what a host was
// asked, and what it acknowledged, is known here. The same program is also its own
// hand in the machine, which does what it is told through its standard streams.
package power
