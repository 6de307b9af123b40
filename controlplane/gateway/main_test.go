package gateway

import (
	"testing"

	"github.com/culvert-mesh/culvert/pkg/run/runtest"
)

func TestMain(m *testing.M) { runtest.Main(m) }
