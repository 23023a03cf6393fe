package place

import (
	"context"
	"fmt"
	"strings"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/cgroup"
)

// Whole changes limits of g by set, when by has made room for them, all or none: when
// set fails half way it is called once more, with what was before. The error tells whether
// that has come to hold again, and if not, what does. Limits that are no files are for
// set to leave as they were.
func Whole(ctx context.Context, g cgroup.Group, l service.Limits, by Lowering, set func(context.Context, service.Limits) error) error {
	was, err := g.Limits(service.Limits{})
	if err != nil {
		return err
	}
	begun := false
	failed := by(ctx, l, func(ctx context.Context) error {
		begun = true
		return set(ctx, l)
	})
	if failed == nil || !begun {
		return failed
	}
	back := before(l, was)
	err = g.Lower(context.WithoutCancel(ctx), back, func(ctx context.Context) error { return set(ctx, back) })
	if err == nil {
		return fmt.Errorf("%w; all is as before again", failed)
	}
	now, readErr := g.Limits(service.Limits{})
	if readErr != nil { // it is no more
		return failed
	}
	return fmt.Errorf("%w; what was before could not be set again (%v), so that now %s", failed, err, differences(back, now))
}

// together are limits that the kernel changes or refuses for the sake of each other.
var together = [][2]service.Resource{{service.CPUMax, service.CPUBurst}, {service.CPUWeight, service.CPUIdle}}

// before is what to set so that nothing is left of a change to l.
func before(l service.Limits, was service.Applied) (back service.Limits) {
	for _, pair := range together {
		if l[pair[0]].Set || l[pair[1]].Set {
			for _, r := range pair {
				back[r] = was[r].Applied
			}
		}
	}
	for i, q := range l {
		r := service.Resource(i)
		_, _, unlimited := r.Range()
		switch {
		case !q.Set || cgroup.File(r) == "":
		case was[r].Applied.Set:
			back[r] = was[r].Applied
		case unlimited: // the kernel had no such limit
			back[r] = service.Of(service.Unlimited)
		}
	}
	return back
}

// differences tells what holds instead of what is wanted.
func differences(want service.Limits, now service.Applied) string {
	var words []string
	for i, q := range want {
		r, is := service.Resource(i), now[i].Applied
		if q.Set && is.Set && is != q {
			words = append(words, fmt.Sprintf("%s is %s instead of %s", r, r.Format(is), r.Format(q)))
		}
	}
	if len(words) == 0 {
		return "the kernel holds it all the same"
	}
	return strings.Join(words, ", ")
}
