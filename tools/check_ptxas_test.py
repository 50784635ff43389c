"""check_ptxas.py sees what it is for, and shows the rest."""

import unittest

from check_ptxas import check

CLEAN = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z1kPf' for 'sm_90a'
ptxas info    : Function properties for _Z1kPf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 138 registers, used 1 barriers
"""


class CheckPtxas(unittest.TestCase):
    def test_shows_nothing_of_a_clean_kernel(self):
        self.assertEqual(check(CLEAN), ([], []))

    def test_shows_other_messages(self):
        warning = 'k.cu(3): warning #177-D: variable "x" was declared but never referenced'
        self.assertEqual(check(warning + "\n" + CLEAN), ([warning], []))

    def test_complains_of_spills(self):
        shown, complaints = check(CLEAN.replace("0 bytes spill loads", "8 bytes spill loads"))
        self.assertEqual(shown, [])
        self.assertEqual(len(complaints), 1)
        self.assertIn("_Z1kPf: registers are spilled", complaints[0])

    def test_complains_of_serialized_wgmma(self):
        note = (
            "ptxas info    : (C7511) Potential Performance Loss: wgmma.mma_async instructions are serialized due to "
            "insufficient register resources for the wgmma pipeline in the function '_Z1gPf'"
        )
        shown, complaints = check(CLEAN + note)
        self.assertEqual(shown, [])
        self.assertEqual(len(complaints), 1)
        self.assertIn("_Z1gPf: wgmma is serialized", complaints[0])


if __name__ == "__main__":
    unittest.main()
