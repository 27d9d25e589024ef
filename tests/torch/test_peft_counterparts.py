"""PEFT's own VB-LoRA tests, rewritten for vbfmt: layers, and the list of all.

Every test of PEFT (main of August 2026) that runs with ``VBLoRAConfig`` is listed here or in
`test_peft_counterparts_of_models` and `test_peft_counterparts_of_configs`. The tests that this
table names are here, in `test_peft_counterparts_of_files` (what is saved and loaded), and in
`test_peft_counterparts_of_adapters` (merging, switching and taking out). Tests of PEFT in one row
test the same in several files. "No such thing": vbfmt does not have this, and the test shows what a
user gets instead.

tests/test_vblora.py
    test_vblora_parameters                    test_shapes_and_a_single_bank
    test_save_with_topk_weights               test_the_topk_form_has_k_indices_and_fewer_weights
    test_save_load                            test_outputs_are_the_same_after_saving_and_loading
    test_resume_training_model_with_…         test_the_topk_form_cannot_be_trained_further
    test_vblora_dtypes                        test_the_output_has_the_bases_dtype
    test_vblora_nb_savable_params_only_…      test_how_many_numbers_are_stored_and_trained
    test_vblora_nb_savable_params_all_logits  test_how_many_numbers_are_stored_and_trained
tests/test_initialization.py
    test_vblora_with_incompatible_… (2)       test_a_vector_length_that_does_not_divide
    test_key_mapping_…_vblora (4)             test_layers_with_other_names_are_refused (no such
                                              thing: ``vbfmt expand --base`` renames)
tests/test_custom_models.py, tests/testing_common.py (6 models each)
    test_attributes_parametrized              test_attributes_of_a_model_with_an_adapter
    test_adapter_name                         test_the_adapters_name_is_in_its_parameters_names
    test_save_pretrained                      test_a_checkpoint_is_two_files_with_every_value
    test_save_pretrained_pickle               test_a_pickle_is_not_read (no such thing)
    test_save_pretrained_adapter_name_…       test_only_the_named_adapter_is_saved
    test_load_model_low_cpu_mem_usage         test_a_model_on_the_meta_device_takes_an_adapter
    test_from_pretrained_config_construction  test_a_checkpoint_has_its_config
    test_load_multiple_adapters               test_a_checkpoint_is_loaded_under_several_names
    test_merge_layers                         test_merging_changes_no_output
    test_merge_layers_fp16, test_forward_…    test_half_precision_runs_and_merges
    test_merge_layers_is_idempotent           test_a_second_merge_is_refused (no such thing)
    test_safe_merge                           test_merged_weights_can_be_saved
    test_training_custom_models               test_every_parameter_of_the_adapter_has_a_gradient
    test_inference_safetensors                test_outputs_are_the_same_after_saving_and_loading
    test_peft_model_device_map                test_a_new_adapter_is_on_the_device_of_its_layers
    test_in_features_out_features_exposed     test_a_layer_has_its_sizes
    test_forward_output_finite                test_the_outputs_equal_pefts
    test_forward_…_no_autocast                test_an_adapter_is_float32 (no such thing)
    test_adapter_dtype_autocast               test_an_adapter_is_float32
    test_only_params_are_updated              test_training_changes_only_the_adapter
    test_save_load_roundtrip                  test_outputs_are_the_same_after_saving_and_loading
    test_parameters_after_loading_model       test_a_checkpoint_is_two_files_with_every_value
    test_disable_adapters                     test_disabled_gives_the_base
    test_disable_adapters_with_merging        test_a_merged_adapter_cannot_be_disabled
    test_disable_adapters_exiting_… (2)       test_after_disabled_outputs_are_as_before
    test_active_adapter                       test_one_adapter_is_active_at_a_time
    test_delete_adapter                       test_a_removed_adapter_leaves_nothing
    test_delete_adapter_properly_cleans_…     test_a_removed_adapter_leaves_nothing
    test_delete_inactive_adapter              test_removing_another_adapter_keeps_the_active_one
    test_delete_unknown_adapter_raises        test_removing_an_unknown_adapter_is_an_error
    test_delete_merged_adapter_… (2)          test_a_merged_adapter_cannot_be_removed
    test_adding_multiple_adapters_with_bias…  test_each_adapter_has_its_own_biases
    test_get_base_model_state_dict            test_the_bases_own_state_dict
    test_save_load_roundtrip_fsdp_… (3)       test_an_adapters_state_dict_from_fsdp
    test_disable_adapter_with_bias_warns      skipped by PEFT for VB-LoRA
tests/test_custom_models.py, TestMultipleActiveAdapters (2 pairs)
    test_multiple_active_adapters_forward     test_one_adapter_is_active_at_a_time (no such thing)
    test_multiple_active_adapters_merge_…     test_the_sum_of_two_adapters_is_merged
    test_merge_layers_multi                   test_the_sum_of_two_adapters_is_merged
    test_sequential_merge_matches_batch_…     test_a_second_merge_is_refused (no such thing)
    test_unmerge_after_sequential_merge_…     test_the_sum_of_two_adapters_is_merged
tests/test_custom_models.py, TestRequiresGrad
    test_requires_grad_vblora_… (2)           test_only_the_active_adapter_trains
tests/test_common_gpu.py
    test_vblora_add_new_adapter_does_not_…    test_a_new_adapter_does_not_move_another
tests/regression
    test_vblora_tuning, test_state_dict (2)   test_peft_counterparts_of_models
"""

from __future__ import annotations

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tests.torch.peft_models import (
    CUSTOM,
    MLP,
    A,
    assert_equal,
    beside,
    inputs,
    made,
    ours,
    output,
    values,
)
from vbfmt.errors import ConfigError
from vbfmt.torch import (
    VBLoRAConfig,
    adapters_of,
    get_base_state_dict,
    inject,
    layer_status,
    load_checkpoint,
    num_stored_parameters,
    num_trainable_parameters,
    param_groups,
    save_checkpoint,
    set_adapter_state_dict,
)


@pytest.fixture(params=CUSTOM)
def case(request):
    return request.param


def test_shapes_and_a_single_bank(tmp_path):
    settings = {"target_modules": ["lin0", "lin1", "lin3"], "vector_length": 2, "num_vectors": 10}
    model = made(MLP)
    inject(model, VBLoRAConfig(**settings))
    save_checkpoint(model, tmp_path / "ours")
    found = load_file(tmp_path / "ours" / "adapter_model.safetensors")
    made_by_peft = peft.get_peft_model(made(MLP), peft.VBLoRAConfig(**settings))
    made_by_peft.save_pretrained(str(tmp_path / "theirs"))
    expected = load_file(tmp_path / "theirs" / "adapter_model.safetensors")
    assert {key: t.shape for key, t in found.items()} == {
        key: t.shape for key, t in expected.items()
    }
    assert found["base_model.model.lin0.vblora_logits_B"].shape == (10, 4, 10)
    adapters = adapters_of(model)
    banks = {id(layer.updates["default"].bank) for layer in adapters.all_layers().values()}
    assert banks == {id(adapters.adapter().bank)}
    assert adapters.adapter().bank.weight.shape == (10, 2)
    assert output(model, inputs(MLP)).shape == (9, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_output_has_the_bases_dtype(dtype):
    model = made(MLP).to(dtype)
    inject(model, VBLoRAConfig(**A))
    assert output(model, inputs(MLP).to(dtype)).dtype == dtype


def test_how_many_numbers_are_stored_and_trained():
    model = made(MLP)
    settings = {"target_modules": ["lin0", "lin1"], "vector_length": 2, "num_vectors": 10}
    inject(model, VBLoRAConfig(**settings, modules_to_save=["lin3"]))
    theirs = peft.get_peft_model(
        made(MLP), peft.VBLoRAConfig(**settings, save_only_topk_weights=True)
    )
    for parameter in theirs.base_model.model.lin3.parameters():
        parameter.requires_grad_(True)
    assert num_stored_parameters(model) == sum(theirs.get_nb_savable_parameters())
    theirs.peft_config["default"].save_only_topk_weights = False
    assert num_trainable_parameters(model)[0] == sum(theirs.get_nb_savable_parameters())


@pytest.mark.parametrize("layer", ["lin0", "lin3"])
def test_a_vector_length_that_does_not_divide(layer):
    config = VBLoRAConfig(target_modules=[layer], vector_length=3)
    with pytest.raises(ConfigError, match=f"does not divide.*{layer}"):
        inject(made(MLP), config)


def test_attributes_of_a_model_with_an_adapter(case):
    model, _ = ours(case)
    assert [each.name for each in layer_status(model)] == [*adapters_of(model).all_layers()]
    assert "push_to_hub" not in dir(model)


def test_the_adapters_name_is_in_its_parameters_names(case):
    kind, settings = CUSTOM[case]
    model = made(kind)
    inject(model, VBLoRAConfig(**settings), adapter_name="test-adapter")
    trained = [name for name, each in model.named_parameters() if each.requires_grad]
    assert sum("test-adapter" in name for name in trained) == len(trained) - 2 * (
        "modules_to_save" in settings
    )


def test_a_model_on_the_meta_device_takes_an_adapter(case):
    kind, settings = CUSTOM[case]
    with torch.device("meta"):
        model = kind()
    inject(model, VBLoRAConfig(**settings))
    assert {each.device.type for each in model.parameters()} == {"meta"}


def test_every_parameter_of_the_adapter_has_a_gradient(case):
    model, x = ours(case)
    model(x).sum().backward()
    adapters = adapters_of(model)
    own = {id(p) for group in adapters.parameters_of("default").values() for p in group}
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == (id(parameter) in own), name


def test_a_layer_has_its_sizes(case):
    model, _ = ours(case)
    for name, layer in adapters_of(model).all_layers().items():
        base = made(CUSTOM[case][0]).get_submodule(name)
        shape = tuple(base.weight.shape)
        expected = shape if isinstance(base, nn.Linear) else shape[::-1]
        assert (layer.out_features, layer.in_features) == expected


def test_the_outputs_equal_pefts(case, tmp_path):
    x = inputs(CUSTOM[case][0])
    model, other = beside(case, tmp_path)
    found = output(model.eval(), x)
    assert found.isfinite().all()
    torch.testing.assert_close(found, output(other.eval(), x), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(output(model.train(), x), output(other.train(), x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_an_adapter_is_float32(case, dtype, tmp_path):
    kind, settings = CUSTOM[case]
    model = made(kind).to(dtype)
    inject(model, VBLoRAConfig(**settings))
    inject(model, VBLoRAConfig(**settings), adapter_name="other")
    save_checkpoint(model, tmp_path / "checkpoint")
    load_checkpoint(model, tmp_path / "checkpoint", adapter_name="loaded")
    for name in ("default", "other", "loaded"):
        parameters = adapters_of(model).parameters_of(name)
        assert {p.dtype for p in (*parameters["bank"], *parameters["logits"])} == {torch.float32}
        assert {p.dtype for p in parameters["rest"]} <= {dtype}


def test_training_changes_only_the_adapter(case):
    model, x = ours(case)
    before = {name: tensor.clone() for name, tensor in get_base_state_dict(model).items()}
    own = values(model)
    optimizer = torch.optim.SGD(param_groups(model), lr=100)
    for group in optimizer.param_groups:
        group["lr"] = 1.0 if group["name"] == "rest" else 100
    for _ in range(3):
        optimizer.zero_grad()
        model(x).sum().backward()
        optimizer.step()
    assert_equal(get_base_state_dict(model), before)
    assert [key for key, tensor in values(model).items() if torch.equal(tensor, own[key])] == []


@pytest.mark.parametrize("bias", ["none", "all", "vblora_only"])
def test_an_adapters_state_dict_from_fsdp(case, bias):
    import torch.distributed as dist
    from torch.distributed.fsdp import FullyShardedDataParallel

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        model, x = ours(case, bias=bias)
        for parameter in adapters_of(model).parameters_of("default")["rest"]:
            torch.nn.init.constant_(parameter, 0.23)
        expected = output(model, x)
        wrapped = FullyShardedDataParallel(
            model, use_orig_params=True, device_id=torch.device("cpu")
        )
        torch.testing.assert_close(output(wrapped, x), expected)
        with FullyShardedDataParallel.summon_full_params(wrapped):
            state = values(wrapped)
    finally:
        dist.destroy_process_group()
    fresh, _ = ours(case, bias=bias)
    set_adapter_state_dict(fresh, state)
    torch.testing.assert_close(output(fresh, x), expected)


def test_a_new_adapter_is_on_the_device_of_its_layers(case):
    model, _ = ours(case)
    for name, layer in adapters_of(model).all_layers().items():
        assert layer.updates["default"].logits.device == layer.weight.device, name
