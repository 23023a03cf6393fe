package byggvir

import (
	"strings"

	"github.com/gladsheim/gladsheim/agent/service"
)

// Warned tells which warning levels a reading is above. A resource without a
// limit in effect has none.
func Warned(u service.Usage, limits service.Applied, levels service.Warnings) service.Warned {
	above := func(r service.Resource, used, level float64) bool {
		limit := limits[r].Effective
		return limit.Set && limit.Value != service.Unlimited && level > 0 && 100*used >= level*float64(limit.Value)
	}
	return service.Warned{
		Memory: above(service.MemoryMax, float64(u.Memory), levels.Memory),
		CPU:    above(service.CPUMax, u.CPUPercent*service.UsecPerPercent, levels.CPU),
	}
}

// Words says in a few words what w holds.
func Words(w service.Warned) string {
	var words []string
	if w.Memory {
		words = append(words, "memory high")
	}
	if w.CPU {
		words = append(words, "cpu high")
	}
	if len(words) == 0 {
		return "below the warning levels"
	}
	return strings.Join(words, ", ")
}
