// Package arch holds the architecture: which package may import which, that
// each says in one comment what it is, and what only one place may do.
package arch
