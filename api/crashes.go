package api

import (
	"context"

	"github.com/gladsheim/gladsheim/agent/service"
	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

func (r *runtime) ListCrashes(_ context.Context, req *gladsheimv1.ListCrashesRequest) (*gladsheimv1.CrashHistory, error) {
	st, err := r.find("list the crashes of", req.GetServiceName())
	if err != nil {
		return nil, err
	}
	records, err := r.agent.Exits(st.Name, 0)
	if err != nil {
		return nil, err
	}
	return toCrashes(records), nil
}

// toCrashes groups the ends of a service, latest first, by how it failed.
func toCrashes(records []service.ExitRecord) *gladsheimv1.CrashHistory {
	out := &gladsheimv1.CrashHistory{}
	known := map[string]*gladsheimv1.Crash{}
	for i := range records {
		x := &records[i]
		if x.Fingerprint == "" || x.Verdict == service.VerdictClean {
			continue
		}
		crash := known[x.Fingerprint]
		if crash == nil {
			crash = &gladsheimv1.Crash{
				Fingerprint: utf8(x.Fingerprint), Count: uint32(max(0, x.Seen)), FirstUnixMs: millis(x.FirstSeen), LastUnixMs: millis(x.Ended),
				Latest: toExit(x),
			}
			known[x.Fingerprint] = crash
			out.Crashes = append(out.Crashes, crash)
		}
		crash.Incarnations = append(crash.Incarnations, x.Incarnation)
	}
	return out
}
