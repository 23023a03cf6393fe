// Package service is the vocabulary of Gladsheim: what a service is, which
// states it passes through, which effects each step asks for, and how an end,
// a limit or an error is told. It is pure: standard library only, no IO, no
// clock, no goroutine, so every other package may import it.
package service
