package service

// LimitReport tells what became of one requested limit.
type LimitReport struct {
	Requested Quota  // as asked for
	Instead   Quota  // as the agent has it for now instead, see Ladder; unset where it does not
	Applied   Quota  // read back from the kernel after its rounding
	Effective Quota  // the minimum of Applied and every ancestor's; of a list what is in all of them
	SetBy     string // the cgroup (relative to the root) whose value is Effective, "" when it is the service's own
	Enforced  bool   // the host enforces it
	AtRestart Quota  // as a restart would ask for, unset where that is Requested or nobody looked
}

// Applied holds one LimitReport for each Resource; those of resources that
// nobody asked for have Requested unset and still tell what holds.
type Applied [NumResources]LimitReport

// Held adds what the agent has instead of what was asked for.
func (a *Applied) Held(instead Limits) {
	for r, q := range instead {
		a[r].Instead = q
	}
}

// Offer adds the limits that the kernel would enforce, had anybody asked for them:
// their files are there only then, and nothing limits until then.
func (a *Applied) Offer(e Enforcement) {
	for r := range a {
		rep := &a[r]
		asked := rep.Requested.Set && rep.Requested.Value != Unlimited
		if _, _, unlimited := Resource(r).Range(); !rep.Enforced && e.Limits[r] && !asked && unlimited {
			rep.Applied, rep.Effective, rep.Enforced = Of(Unlimited), Of(Unlimited), true
		}
	}
}

// Unenforced lists the requested limits that the host does not enforce.
func (a Applied) Unenforced() []Resource {
	var out []Resource
	for r, rep := range a {
		if rep.Requested.Set && !rep.Enforced {
			out = append(out, Resource(r))
		}
	}
	return out
}
