package units

import _ "embed"

// Service is the agent's own unit, to be installed as gladsheimd.service.
//
//go:embed files/gladsheimd.service
var Service string

// SliceUnit is the unit of Slice, to be installed under that name.
//
//go:embed files/gladsheim.slice
var SliceUnit string

// Sysusers makes the group whose members may talk to the agent
// (sysusers.d(5)), to be installed as sysusers.d/gladsheim.conf.
//
//go:embed files/gladsheim.conf
var Sysusers string
