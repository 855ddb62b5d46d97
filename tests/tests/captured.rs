//! What a Pod may expect of Services: the same with its node's kube-proxy alone and with Remora in
//! the Pod, and never worse with Remora, whatever becomes of it.

tests::cases! {
    remora: on,
    both: {
        reach: [
            a_cluster_ip_is_reached_in_both_families,
            endpoints_come_and_go,
            an_endpoint_sees_the_address_of_the_clients_pod,
            a_pod_reaches_itself_through_its_service,
            large_transfers_arrive_whole,
            two_hundred_streams_arrive_whole_while_endpoints_roll,
            the_api_server_is_reached_through_its_service,
        ],
        ports: [
            each_port_of_a_service_leads_to_its_own,
            a_port_is_added_and_removed,
            a_named_port_means_another_number_on_each_endpoint,
            slices_written_by_hand_serve_together,
            udp_goes_the_nodes_way_beside_tcp_on_the_same_port,
        ],
        changes: [
            connect_is_refused_without_endpoints_until_one_appears,
            connect_is_refused_while_no_endpoint_is_ready,
            a_service_is_deleted_and_made_again_at_its_address,
            an_address_of_no_service_is_left_to_the_node,
            a_service_becomes_an_external_name_and_back,
            a_service_keeps_its_address_through_other_types,
            a_service_of_another_proxy_goes_the_nodes_way,
            slices_labelled_headless_are_not_used,
            unready_endpoints_serve_if_they_are_published,
        ],
        policies: [
            local_traffic_stays_on_the_node,
            local_traffic_is_refused_without_endpoints_anywhere,
            local_terminating_endpoints_serve_before_ready_ones_elsewhere,
            terminating_endpoints_serve_when_there_are_no_others,
            endpoints_hinted_for_the_zone_are_preferred,
            endpoints_hinted_for_the_node_are_preferred,
            hints_for_the_node_come_before_hints_for_the_zone,
        ],
        affinity: [
            affinity_is_switched_on_and_off,
            a_client_whose_endpoint_goes_is_pinned_to_another,
        ],
        outside: [
            an_external_ip_is_reached_from_inside,
            a_load_balancers_address_is_reached_from_inside,
            a_node_port_is_reached_at_both_nodes,
        ],
    },
    alone: {
        contained: [
            in_a_container_one_capability_is_enough_to_serve,
        ],
        fail_open: [
            before_its_first_table_everything_goes_the_nodes_way,
            after_a_kill_connections_work_again_within_five_seconds,
            after_a_kill_nothing_is_refused_any_more_but_by_the_node,
            after_a_clean_stop_everything_goes_the_nodes_way,
            no_connection_breaks_while_heartbeats_lapse_and_return,
            without_descriptors_new_connections_go_the_nodes_way,
            rules_made_anew_are_told_everything_again,
            a_service_whose_balance_is_off_goes_the_nodes_way,
            remora_reaches_the_api_server_through_the_service_that_it_serves,
        ],
    },
}
