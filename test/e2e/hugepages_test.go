package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

// TestHugePages: what is beyond hugetlb_max can not be mapped, the limit changes live but
// not below what is held, and is set back. systemd passes the controller on to nobody:
// scopes refuse the limit, and cgroups do until somebody has passed it on to them.
func TestHugePages(t *testing.T) {
	oneOfAKind(t)
	def := workload(t, "huge", "huge", "hog-huge", fmt.Sprint(16*mebibyte)).
		with(fields{"limits": fields{"hugetlb_max": []fields{{"page_size": "2MiB", "max": "8MiB"}}}})
	if !needsLimits(t, def) {
		return
	}
	const pages = "/proc/sys/vm/nr_hugepages"
	before, err := os.ReadFile(pages)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(pages, []byte("16"), 0o600))
	t.Cleanup(func() { require.NoError(t, os.WriteFile(pages, before, 0o600)) })
	eachMode(t, func(t *testing.T, w *world, mode string) {
		def := def.with(fields{"launch": mode})
		if offers(t, "systemd") {
			_, err := w.catalog().Register(contextFor(t), &gladsheimv1.RegisterRequest{Definition: def.json(t), File: "test.json"})
			require.Equal(t, codes.FailedPrecondition, status.Code(err), "%v", err)
			if mode == "scope" {
				require.ErrorContains(t, err, "hugetlb_max (systemd has no setting for huge pages, and never passes the controller hugetlb on: set launch to cgroup")
				return
			}
			require.ErrorContains(t, err, "hugetlb_max (the controller hugetlb ends in /, which does not pass it on: write +hugetlb into /sys/fs/cgroup/cgroup.subtree_control)")
			for _, group := range []string{"", "gladsheim.slice"} {
				require.NoError(t, os.WriteFile(filepath.Join("/sys/fs/cgroup", group, "cgroup.subtree_control"), []byte("+hugetlb"), 0))
			}
			w.leave(syscall.SIGTERM)
			w.begin()
		}
		w.register(def)
		s := byGRPC{w}.start("huge")
		checkPlace(t, s, mode)
		eventually(t, "it is refused more", func() bool {
			return strings.Contains(w.mustCLI("logs", "huge"), fmt.Sprintf("held %d of %d: cannot allocate memory", 8*mebibyte, 16*mebibyte))
		})
		refused := w.cli("set", "huge", "hugetlb_max=2MiB:4MiB")
		require.NotZero(t, refused.code)
		require.Contains(t, refused.stderr, "it has more than 4MiB in pages of 2MiB")
		require.Contains(t, w.mustCLI("set", "huge", "hugetlb_max=2MiB:10MiB"), "2MiB:10MiB")
		for _, file := range []string{"hugetlb.2MB.max", "hugetlb.2MB.rsvd.max"} {
			require.Equal(t, fmt.Sprint(10*mebibyte), cgroupFile(t, s.Cgroup, file))
		}
		require.NoError(t, os.WriteFile(filepath.Join("/sys/fs/cgroup", s.Cgroup, "hugetlb.2MB.rsvd.max"), []byte(fmt.Sprint(8*mebibyte)), 0))
		eventually(t, "it is set back", func() bool {
			return cgroupFile(t, s.Cgroup, "hugetlb.2MB.rsvd.max") == fmt.Sprint(10*mebibyte)
		})
		require.Contains(t, w.mustCLI("limits", "huge"), "2MiB:10MiB")
	})
}
