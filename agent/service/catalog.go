package service

import "time"

// File is one definition file as it came: its name in messages, such as a
// path, and its bytes.
type File struct {
	Name    string
	Content []byte
}

// Definition is one registered definition.
type Definition struct {
	Name       Name
	Document   []byte    // the JSON document as it was registered, nothing filled in
	Source     string    // the file it came from, or SourceAPI
	Generation uint64    // counts changes of it, from 1
	Changed    time.Time // of the last change
}

// ApplyOptions say how definitions are applied.
type ApplyOptions struct {
	DryRun  bool  // only tell what would change
	Replace *bool // they are registered: whether what is so already is replaced; nil: it is
}

// SourceAPI is the Source of a definition that was registered by a caller and
// not by a file of the host.
const SourceAPI = "api"

// Action is what a registration did to a definition.
type Action uint8

// The actions, numbered from 1 as on the wire; 0 is none.
const (
	ActionAdded     Action = iota + 1 // it is new
	ActionChanged                     // it was there and differs
	ActionUnchanged                   // it was there and is the same
	NumActions
)

var actionNames = [NumActions]string{"", "added", "changed", "unchanged"}

func (a Action) String() string { return actionNames[a] }

// Reach tells when a change of a definition reaches the service.
type Reach uint8

// The reaches, numbered from 1 as on the wire; a later one outweighs those
// before it.
const (
	ReachNone      Reach = iota + 1 // there is nothing to take effect
	ReachLive                       // at once; what runs already follows it
	ReachNextStart                  // with the next start; what runs goes on as it was started
	NumReaches
)

var reachNames = [NumReaches]string{"", "none", "live", "next start"}

func (r Reach) String() string { return reachNames[r] }

// Change is what happened, or would happen, to one definition.
type Change struct {
	Service Name
	Action  Action
	Fields  []string // paths in the JSON document that differ, e.g. "limits.memory_max"
	Effect  Reach    // the latest, if the fields differ in that
}
