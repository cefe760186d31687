"""The contract, line by line, and the tests that hold each line: file::test, without "test_".

A line is here once it is true. `test_house/test_contract.py` looks whether the tests are there.
"""

TESTS = {
    "2. The layer": {
        "bn(x, training, mask, residual, out): y = activation(batch_norm(x) + residual)": (
            "layer::training_follows_the_equations_under_every_option",
            "layer::evaluation_follows_the_equations_under_every_option",
            "fused::forward_is_the_definition",
            "layer::the_training_argument_overrides_the_mode_for_one_call",
        ),
        "options, their names, order and defaults": ("contract::the_signatures",),
        "axis: any": ("layer::every_axis_and_number_of_dimensions",),
        "scale, center: whether gamma and beta exist": ("layer::scale_and_center_say_which_parameters_exist",),
        "track_running_stats=False: batch statistics in both modes": (
            "layer::without_running_statistics_both_modes_use_the_batch",
        ),
        "correction, running_correction": (
            "functional::correction_enters_the_variance_that_normalizes",
            "functional::running_correction_enters_the_running_variance",
        ),
        "activation, negative_slope: relu, relu6, leaky_relu, hard_swish": (
            "fused::torch_agrees",
            "fused::the_options_are_kept",
        ),
        '"silu", "mish": within 4 units, the same bits everywhere, gradients within 8 eps |grad_y|': (
            "activations::within_four_units_in_the_last_place",
            "activations::the_gradient_is_within_eight_eps",
            "activations::the_ends",
            "activations::the_same_bits_in_every_layout_and_batch",
            "activations::the_same_bits_without_a_compiler",
        ),
        '"prelu": slope, grad_slope; in state dicts, files, pickles': (
            "activations::the_slope_is_a_parameter",
            "activations::the_slope_is_that_of_the_forward",
            "activations::prelu_has_a_slope_a_channel",
            "fused::gradients_are_those_of_finite_differences",
        ),
        "... a number or (C,) in functions and frozen layers; leaky_relu a number": (
            "activations::functions_and_frozen_layers_take_a_slope_a_channel",
            "fused::wrong_options_are_refused",
        ),
        "on_nonfinite: propagate, raise, skip": (
            "nonfinite::raise_changes_nothing",
            "nonfinite::skip_normalizes_and_leaves_the_running_statistics",
            "nonfinite::inference_with_running_statistics_only_propagates",
        ),
        "dtype of gamma, beta, running_*": ("layer::dtype_is_that_of_parameters_and_running_statistics",),
        "backward: of the last forward, either mode; sets grad_gamma, grad_beta, grad_residual": (
            "layer::backward_follows_the_equations_under_every_option",
            "gradients::gradients_of_the_layer",
            "fused::gradients_are_those_of_finite_differences",
            "backward::backward_belongs_to_the_last_forward",
        ),
        "backward does not accumulate": ("backward::backward_does_not_accumulate",),
        "train, eval return bn": ("layer::train_and_eval_return_the_layer",),
        "arrays are updated in place, never rebound": ("layer::arrays_are_updated_in_place_and_never_rebound",),
        "num_batches_tracked is an int": ("layer::batches_are_counted_in_training_only",),
        "batch_mean, batch_var, batch_inv_std: float64 of the last training forward": (
            "layer::batch_statistics_of_the_last_training_forward",
            "observation::what_a_layer_saw_last",
        ),
        "reset_running_stats, reset_parameters": ("peer_torch::resets_match",),
        "state_dict: copies; load_state_dict checks all before it changes anything": (
            "persistence::a_state_dict_holds_copies_of_what_exists",
            "persistence::a_state_that_does_not_fit_is_refused_whole",
        ),
        "save, load: .npz, with configuration, atomic, never unpickles": (
            "persistence::a_saved_layer_comes_back_with_its_configuration",
            "persistence::a_failing_step_of_a_save_leaves_the_old_file",
            "persistence::a_file_with_a_pickle_is_refused_and_runs_nothing",
        ),
        "freeze": ("frozen::the_bits_are_those_of_the_layer_in_inference",),
        "pickle, deepcopy, repr; pickles name public paths only": (
            "persistence::a_pickled_layer_comes_back",
            "persistence::a_deep_copy_is_independent",
            "persistence::a_pickle_names_public_paths_only",
            "persistence::repr_shows_the_options",
            "words::the_mode_and_what_was_tracked_are_shown",
        ),
        "num_features=None: the first forward builds, inference and empty batches too": (
            "lazy::the_first_forward_builds",
            "lazy::an_empty_batch_builds",
        ),
        "... one that raises does not": ("lazy::a_forward_that_raises_does_not_build",),
        "... so do build and load_state_dict": ("lazy::build", "lazy::a_state_dict_builds"),
        "... before that arrays are None, and what needs channels raises RuntimeError": (
            "lazy::the_first_forward_builds",
            "lazy::what_needs_channels_says_so",
        ),
        "... two threads build once": ("lazy::two_threads_build_once",),
        "... pickles and files work before and after": ("lazy::files_pickles_and_copies_before_and_after",),
        "virtual_batch_size: the same bits as calls one after the other, backward likewise": (
            "ghost_batches::the_bits_are_those_of_calls_one_after_the_other",
            "ghost_batches::gradients_against_finite_differences",
            "ghost_batches::torch_trained_with_the_parts",
        ),
        "... a last part too small to train with joins the one before": (
            "ghost_batches::a_last_part_too_small_to_train_with_joins_the_one_before",
        ),
        "... training only; num_batches_tracked counts parts, batch_* are of the last": (
            "ghost_batches::only_training_is_cut",
            "ghost_batches::each_part_follows_the_equations",
        ),
        "... raise and skip look at all parts before any is kept": (
            "ghost_batches::raise_looks_at_all_parts_first",
            "ghost_batches::skip_looks_at_all_parts_first",
        ),
        "... calibrate sees all values; SyncBatchNorm refuses it": (
            "ghost_batches::calibrate_sees_all_values",
            "ghost_batches::synchronized_layers_refuse_it",
        ),
        "misspelt attributes are an error; subclasses may add their own": (
            "words::a_misspelt_attribute_is_an_error",
            "words::classes_of_users_add_their_own",
        ),
        "another library's word is answered with nbbn's": (
            "words::options_of_others",
            "words::attributes_of_others",
            "words::names_of_others",
            "words::a_state_dict_of_pytorch_is_told_where_to_go",
        ),
        "eps is finite, >= 0; where var + eps is 0, inv_std counts as 0": (
            "errors::an_eps_out_of_range_is_refused",
            "exactness::no_deviation_and_eps_0_gives_beta",
        ),
        "a negative variance is a ValueError wherever one is given": (
            "words::a_negative_variance_is_refused",
            "functional::a_negative_running_variance_is_refused_in_training_too",
        ),
        "momentum: any finite float; None: the cumulative average": (
            "errors::a_momentum_that_is_not_finite_is_refused",
            "layer::no_momentum_is_the_average_of_the_batch_statistics",
        ),
        "an empty batch changes nothing": ("layer::an_empty_batch_changes_nothing",),
        "all masked: the running statistics, and nothing changes": (
            "mask::all_masked_uses_running_statistics_and_changes_nothing",
        ),
        "training with n == 1": (
            "layer::one_value_per_channel_is_refused_otherwise",
            "layer::one_value_per_channel_is_allowed_where_no_correction_divides_by_zero",
        ),
        "mask: its forms; masked values may be NaN, every output is computed": (
            "mask::forms_of_a_mask",
            "mask::a_short_mask_has_one_reading_whatever_sizes_agree",
            "mask::what_is_under_the_mask_harms_nothing",
        ),
        "backward in inference through the affine map only": (
            "backward::inference_gradients_use_the_statistics_of_that_forward",
        ),
        "backward before a forward, or after an overwrite: RuntimeError": (
            "backward::backward_before_a_forward_is_refused",
            "backward::backward_after_the_input_was_overwritten_is_refused",
        ),
        "a forward that raises changes nothing": ("errors_layer::a_forward_refuses_and_changes_nothing",),
    },
    "3. Functions": {
        "signatures": ("contract::the_signatures",),
        "any axis, any number of dimensions; a 1-D x takes axis=0 only": (
            "functional::training_matches_the_equation_on_every_shape_and_axis",
            "errors::a_vector_as_input_takes_no_axis_but_zero",
        ),
        "any strides, read-only and broadcast": ("functional::inference_matches_the_equation_in_every_layout",),
        "whatever asarray or DLPack takes without a copy": (
            "functional::whatever_shares_its_memory_with_numpy_is_accepted",
            "peer_torch::a_tensor_is_read_without_conversion_by_the_caller",
        ),
        "batch_moments, weights": ("moments::moments_of_every_layout", "mask::weighted_moments"),
        "batch_norm updates running statistics in place, either may be None": (
            "functional::running_statistics_of_any_layout_are_updated_in_place",
            "functional::either_running_statistic_may_be_absent_in_training",
        ),
        "normalize; uint8 with dtype=float32": ("halves::bytes_are_normalized_as_float32",),
        "explain": ("explain::it_says_what_happens",),
        "batch_norm_backward": ("functional::backward_matches_the_equation_on_every_shape_and_axis",),
        "Moments: immutable, merge, +, empty, from_batches, update, var, std, sum": (
            "moments::attributes_can_not_be_set",
            "moments::merge_follows_chan",
            "moments::plus_is_merge",
            "moments::from_batches_takes_any_iterable",
            "moments::update_returns_a_new_value",
            "moments::var_and_std_take_off_the_correction",
            "moments::sum_merges_a_list",
        ),
        "merging in any grouping": ("moments::merging_in_any_grouping_agrees_with_the_whole",),
        "calibrate: exact moments of all the data; on an exception nothing changes": (
            "calibrate::statistics_of_all_the_data",
            "calibrate::nothing_changes_on_an_exception",
        ),
    },
    "4. Inference tools": {
        "a snapshot": ("frozen::it_is_a_snapshot",),
        "FrozenBatchNorm, from_stats, out=x": (
            "frozen::the_three_numbers",
            "frozen::wrong_statistics",
        ),
        "fold_linear, fold_conv": (
            "folding::a_linear_layer_does_both",
            "folding::a_convolution_does_both",
            "folding::torch_folds_to_the_same_numbers",
        ),
        "nopython": (
            "nopython::normalize_has_the_bits_of_the_general_function",
            "nopython::moments_are_as_exact_as_the_general_function",
            "nopython::in_a_parallel_loop_of_the_user",
        ),
    },
    "5. Interchange": {
        "from_torch: a module, or a state dict of tensors or arrays": (
            "interop_torch::a_module_predicts_and_trains_as_before",
            "interop_torch::a_state_dict_of_arrays_needs_no_torch",
        ),
        "to_torch_state_dict": ("interop_torch::a_state_dict_goes_round_to_the_last_bit",),
        "from_keras": (
            "interop_keras::a_keras_layer_predicts_and_trains_as_before",
            "interop_keras::a_list_of_weights_takes_the_defaults_of_keras",
        ),
        "from_onnx": (
            "interop_onnx::a_node_predicts_as_onnxruntime_does",
            "interop_onnx::the_nodes_of_a_network",
        ),
        "from_onnx(activations=True): an activation that alone follows directly": (
            "interop_onnx_activations::the_layer_does_what_both_nodes_do",
            "interop_onnx_activations::the_slopes_are_those_of_the_model",
            "interop_onnx_activations::what_else_follows_is_left",
            "interop_onnx_activations::a_branch_that_reads_the_output_counts",
        ),
        "load_safetensors, save_safetensors": ("interop_safetensors::a_layer_comes_back_with_its_configuration",),
        "a whole network gives {name: layer}": (
            "interop_torch::a_whole_network",
            "interop_torch::the_state_dict_of_a_whole_network",
            "interop_safetensors::a_file_of_a_whole_network",
        ),
        "with name or prefix only that one is looked at": (
            "interop_onnx::with_a_name_other_nodes_are_not_looked_at",
            "interop_torch::an_error_in_a_network_names_the_layer",
        ),
        "inference mode, except from a torch module in training mode": (
            "interop_onnx::layers_come_in_inference_mode",
            "interop_torch::a_whole_network",
        ),
        "eps=, momentum= for sources that hold none": (
            "interop_torch::the_state_dict_of_a_whole_network",
            "interop_safetensors::a_file_of_a_whole_network",
        ),
        "tensors may go in, arrays come out": ("peer_torch::a_tensor_is_read_without_conversion_by_the_caller",),
        "counters of any shape and type; spatial=0; half precision widens": (
            "interop_torch::a_counter_of_any_type_and_shape",
            "interop_onnx::spatial_0_with_a_value_a_channel_is_per_channel",
            "interop_torch::half_precision_widens_without_loss",
        ),
        "torch's names or nbbn's in safetensors files": (
            "interop_safetensors::files_with_the_names_of_pytorch",
            "interop_safetensors::files_with_our_names_and_no_configuration",
        ),
        "no framework is imported": ("interop_torch::importing_and_loading_arrays_imports_no_framework",),
    },
    "6. Data sets": {
        "the place of StandardScaler, by that project's tests; check_estimator": (
            "standardizer_sklearn::scikit_learns_tests_of_the_standard_scaler",
            "standardizer_sklearn::scikit_learns_own_checks",
        ),
        "fit, partial_fit, transform, inverse_transform, fit_transform": (
            "standardizer::the_oracle",
            "standardizer::chunks_in_any_sizes_and_order_agree_with_the_whole",
            "standardizer::the_inverse_takes_it_back",
            "standardizer::fit_begins_anew_and_partial_fit_goes_on",
        ),
        "axis, with_mean, with_std": (
            "standardizer::every_layout",
            "standardizer::the_mean_or_the_deviation_alone",
        ),
        "copy=; transform(X, copy, out)": (
            "standardizer_gaps::in_place_where_asked_for",
            "standardizer::an_overlapping_out_gets_the_right_values",
        ),
        "sample_weight; metadata routing": (
            "standardizer_gaps::integer_weights_are_repetitions",
            "standardizer_sklearn::weights_are_routed",
        ),
        "get_feature_names_out, set_output; frames in, what set_output says out": (
            "standardizer_sklearn::names_are_kept_and_compared",
            "standardizer_sklearn::output_as_data_frames",
            "standardizer_sklearn::frames_in_and_out",
        ),
        "clone, pickles": (
            "standardizer_sklearn::parameters",
            "standardizer::copies_and_pickles_go_on_where_they_were",
        ),
        "attributes of StandardScaler": (
            "standardizer_sklearn::attributes_and_values_are_those_of_the_standard_scaler",
        ),
        "constant features scale by 1, what rounding leaves of them too": (
            "standardizer::a_constant_feature_becomes_0",
            "standardizer_gaps::what_rounding_leaves_of_a_constant_feature_is_none",
        ),
        "integers, booleans, object columns become float64; bytes float32": (
            "standardizer_gaps::other_numbers_become_float64",
            "standardizer::bytes_become_float32",
            "standardizer::half_types_are_computed_as_float32_and_rounded_once",
        ),
        "NaN is a missing value; dask arrays likewise": (
            "standardizer_gaps::missing_values_are_left_out",
            "standardizer_gaps::an_all_missing_feature_stays_missing_until_it_has_values",
            "standardizer_dask::gaps_weights_and_integers_as_in_memory",
            "stream::missing_values_and_any_numbers",
        ),
        "infinite values are a ValueError, and nothing is lost": (
            "standardizer_gaps::infinite_values_are_refused",
            "standardizer_gaps::nothing_is_written_over_for_an_infinite_value",
            "standardizer_gaps::sums_that_overflow_are_no_infinite_values",
        ),
        "sparse matrices with with_mean=False": (
            "standardizer_sklearn::sparse_as_dense",
            "standardizer_sklearn::what_sparse_matrices_refuse",
        ),
        "no scikit-learn or SciPy is imported for dense arrays": (
            "standardizer_sklearn::without_scikit_learn_nothing_of_it_is_loaded",
        ),
    },
    "7. Types and errors": {
        "float32, float64, mixed with parameters of either": (
            "functional::values_and_parameters_may_have_different_types",
        ),
        "float16, bfloat16": ("halves::inference_is_the_float32_result_rounded_once",),
        "uint8": ("halves::bytes_are_for_normalize_and_moments_only",),
        "batch_moments and Moments.update take integers and booleans as float64": (
            "words::moments_of_integers_are_those_of_float64",
        ),
        "parameters and statistics are any real numbers; scalars in normalize": (
            "words::parameters_are_any_real_numbers",
            "words::lists_and_scalars",
        ),
        "TypeError for any other dtype and masked arrays, named": (
            "errors::an_input_of_another_dtype_is_refused",
            "errors::a_masked_input_is_refused",
        ),
        "a dask array is pointed to dask_normalize": ("words::a_dask_array_is_not_computed_silently",),
        "messages say what to do": ("words::messages_say_what_to_do",),
        "running statistics may be columns of one table": (
            "functional::running_statistics_may_be_columns_of_one_table",
            "functional::running_statistics_that_share_a_byte_are_refused",
        ),
        "ValueError for shape, axis, range, option": (
            "errors::a_vector_of_another_shape_is_refused",
            "errors::an_axis_out_of_range_is_refused",
        ),
        "out has y's shape and dtype; overlap is right or refused": (
            "errors::an_out_that_does_not_fit_is_refused",
            "out::a_partly_overlapping_out_is_right_or_refused_untouched",
        ),
        "checks come before the first write": (
            "errors_layer::a_forward_refuses_and_changes_nothing",
            "fuzz::batch_norm",
        ),
    },
    "8. Threads and warm-up": {
        "set_num_threads, get_num_threads, num_threads": (
            "threads::the_number_of_threads_is_set_read_and_restored",
            "machine::the_default_number_of_threads_stays_within_the_quota",
        ),
        "one line about compiling; NBBN_QUIET; a record of the logger": (
            "cache::one_line_on_a_terminal_says_that_something_is_compiled",
            "cache::it_is_a_record_of_the_logger_and_may_be_silenced_on_the_terminal",
            "observation::nothing_is_printed",
        ),
        "import works without source files, and from a zip archive": (
            "cache::a_package_without_source_files_runs_what_was_compiled_of_them",
        ),
        "warmup": (
            "warmup::inference_compiles_nothing_afterwards",
            "warmup::training_compiles_nothing_afterwards",
        ),
        "show_config, config": (
            "cli::info_prints_the_configuration",
            "observation::the_configuration_is_plain_data",
        ),
        "types: a user's program passes mypy --strict; Literal, ArrayLike, dtypes kept": (
            "types::a_program_of_a_user_is_well_typed",
            "types::what_is_wrong_is_an_error_on_its_line",
        ),
        "dir(nbbn) shows the public names": ("words::dir_shows_the_public_names_only",),
    },
    "9. Command line": {
        "nbbn demo": ("demo::what_is_said_is_what_was_measured",),
        "nbbn normalize": ("cli_files::normalize", "cli_files::the_input_may_be_replaced"),
        "... memory does not grow with the file; atomic; progress; a last line on a terminal": (
            "cli_files::a_file_larger_than_the_memory_that_a_process_may_have",
            "tables::memory_does_not_grow_with_the_file",
            "cli_files::a_process_that_is_killed_leaves_the_old_file_or_the_whole_new_one",
            "cli_files::a_bar_on_a_terminal_and_none_in_a_pipe",
            "tables::a_last_line_on_a_terminal_says_what_was_written",
        ),
        "... --stats, --save-stats": (
            "cli_files::saved_statistics_give_the_same_bits",
            "tables::statistics_of_one_table_serve_another",
        ),
        "... .npz with --key": ("tables::arrays_of_npz_files",),
        "... .csv, .parquet: a column is numeric if every cell is; --columns wins": (
            "tables::a_column_is_numeric_if_every_cell_is",
            "tables::columns_that_are_asked_for",
            "tables::types_and_missing_values_of_parquet",
        ),
        "... cells of other columns keep their text, names and order are kept; --delimiter": ("tables::text",),
        "... the suffix decides; what OUT cannot hold, or is unknown, is refused first": (
            "tables::every_format_to_every_other",
            "tables::an_array_becomes_a_table_and_the_table_an_array",
            "tables::what_is_wrong_is_told_in_a_line_and_nothing_is_written",
        ),
        "nbbn moments --json; a row a column for tables": (
            "cli_files::moments_are_printed_with_all_digits",
            "tables::what_moments_prints",
        ),
        "nbbn bench": ("bench::table_and_files",),
        "nbbn info, nbbn warmup": ("cli::info_prints_the_configuration", "warmup::the_command"),
        "exit status": (
            "cli::bad_usage_is_one_line_on_standard_error",
            "cli_files::bad_input_is_one_sentence",
        ),
    },
    "10. More than one machine": {
        "SyncBatchNorm": ("sync::a_step_is_that_of_one_layer_on_the_concatenated_batch",),
        "mpi4py, torch.distributed, any allgather": (
            "sync_engines::mpi",
            "sync_engines::gloo",
            "sync::what_is_no_communicator",
        ),
        "every worker holds the same bits; uneven and empty batches": ("sync::any_shares",),
        "one small exchange each way": ("sync::one_exchange_of_three_numbers_a_channel_each_way",),
        "an exception on one worker reaches all": ("sync::an_exception_on_one_worker_reaches_all",),
        "dask_moments, dask_normalize": (
            "dask::moments_are_those_of_the_whole",
            "dask::normalizing_computes_nothing",
            "dask::no_task_starts_a_parallel_region",
        ),
        "extras are not imported": ("cli::nothing_heavy_is_imported_before_it_is_needed",),
    },
    "11. Exactness": {
        "float32: var to 1e-6, y to 8 eps, any order": (
            "exactness::variance_and_output_up_to_a_mean_of_a_million_standard_deviations",
            "exactness::variance_and_output_in_any_order_of_the_data",
        ),
        "a constant channel gives exactly beta": ("exactness::a_constant_channel_gives_exactly_beta",),
        "float64: as good as two passes": ("exactness::float64_moments_are_as_good_as_a_two_pass_algorithm",),
        "half types: the float32 result rounded once": (
            "halves::training_and_gradients_are_the_float32_results_rounded_once",
        ),
        "with an activation": ("fused::forward_is_the_definition",),
        "inference: the same bits in every layout, position, batch, thread count": (
            "properties::inference_gives_the_same_bits_whatever_the_layout_batch_or_position",
            "functional::inference_gives_the_same_bits_in_every_layout",
        ),
        "training: the same bits for every thread count, layer and run": (
            "threads::any_number_of_threads_gives_the_same_bits",
            "threading_layers::results_are_those_of_one_thread",
        ),
        "NaN and Inf stay in their channel": ("exactness::nan_and_inf_stay_in_their_channel_in_training",),
    },
}
