import pytest
import torch
from laboratory import chain

from discrete_distill import exact
from discrete_distill.process import LinearSchedule, MaskedDiffusion


def test_one_forward_step_reaches_the_total_correlation():
    markov = chain(3, seed=1)
    student = exact.optimal_student(markov, 1, 4, objective="forward", iterations=200)
    assert student.forward_kl == pytest.approx(markov.total_correlation(4), abs=1e-6)
    assert student.forward_kl >= markov.total_correlation(4) - 1e-10


@pytest.fixture(scope="module")
def reverse_students():
    markov = chain(3, seed=1)
    return markov, {n: exact.optimal_student(markov, n, 3, iterations=150) for n in (1, 2, 3)}


def test_the_optimum_is_below_the_perfect_denoiser_and_falls_with_steps(reverse_students):
    markov, students = reverse_students
    for num_steps, student in students.items():
        teacher = exact.sampler_distribution(markov.denoiser(3), MaskedDiffusion(3), student.times, 3, 3)
        gain = float(exact.kl(teacher, markov.distribution(3))) / student.reverse_kl
        assert gain > (1.1 if num_steps == 1 else 3.0)
    assert students[1].reverse_kl > 2 * students[2].reverse_kl > 4 * students[3].reverse_kl


def test_the_table_samples_the_distribution_that_is_reported(reverse_students):
    markov, students = reverse_students
    student = students[2]
    distribution = exact.sampler_distribution(student.denoiser, MaskedDiffusion(3), student.times, 3, 3)
    torch.testing.assert_close(distribution, student.distribution)
    assert student.reverse_kl == pytest.approx(float(exact.kl(distribution, markov.distribution(3))))
    assert student.forward_kl == pytest.approx(float(exact.kl(markov.distribution(3), distribution)))


def test_own_process_and_grid_are_used():
    process, times = MaskedDiffusion(0, LinearSchedule()), [1.0, 0.8, 0.0]
    markov = chain(2, seed=3)
    student = exact.optimal_student(markov, 2, 2, process=process, times=times, iterations=60)
    assert student.times.tolist() == times
    distribution = exact.sampler_distribution(student.denoiser, process, times, 2, 2)
    torch.testing.assert_close(distribution, student.distribution)
    other = exact.sampler_distribution(student.denoiser, MaskedDiffusion(0), [1.0, 0.8, 0.0], 2, 2)
    assert not torch.equal(distribution, other)


def test_it_is_reproducible():
    first, second = (exact.optimal_student(chain(2), 2, 2, iterations=5) for _ in range(2))
    assert torch.equal(first.distribution, second.distribution)


def test_bad_arguments_are_refused():
    markov = chain(2)
    with pytest.raises(ValueError, match="'jeffreys'"):
        exact.optimal_student(markov, 2, 2, objective="jeffreys")
    with pytest.raises(ValueError, match=r"\[1\.0, 0\.0\]"):
        exact.optimal_student(markov, 2, 2, times=[1.0, 0.0])
    with pytest.raises(ValueError, match=r"\[1\.0, 0\.1\]"):
        exact.optimal_student(markov, 1, 2, times=[1.0, 0.1])
    with pytest.raises(ValueError, match=r"iterations.*\b0\b"):
        exact.optimal_student(markov, 1, 2, iterations=0)
    with pytest.raises(ValueError, match=r"8\^16"):
        exact.optimal_student(exact.large_chain().chain, 2, 16)
    forced = exact.MarkovChain(torch.tensor([0.5, 0.5]), torch.eye(2))
    with pytest.raises(ValueError, match='objective="forward"'):
        exact.optimal_student(forced, 2, 2)
    assert exact.optimal_student(forced, 1, 2, objective="forward", iterations=50).forward_kl < 1.0
