package skirnir

import (
	"path/filepath"

	"github.com/gladsheim/gladsheim/agent/service"
)

// Power is how far the battery was saved, all of it done, in one boot.
type Power struct {
	Level  service.PowerLevel `json:"level"`
	BootID string             `json:"boot_id"`
}

// powerRecord is its file in the run directory, beside those of services.
var powerRecord = service.MustName("power")

// SavePower writes p.
func (s *Store) SavePower(p Power) error { return s.save(s.runDir(), powerRecord, p) }

// Power reads what SavePower wrote last. The error wraps fs.ErrNotExist if it never did.
func (s *Store) Power() (p Power, err error) {
	err = s.read(filepath.Join(s.runDir(), powerRecord.String()+".json"), &p)
	return p, err
}

func (s *Store) runDir() string { return filepath.Dir(s.actual) }
