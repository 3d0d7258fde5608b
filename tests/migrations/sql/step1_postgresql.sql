CREATE TABLE execution_requests (
    scope VARCHAR(255) COLLATE "C" DEFAULT '' NOT NULL, 
    request_id VARCHAR(255) COLLATE "C" NOT NULL, 
    action VARCHAR(255) NOT NULL, 
    fingerprint VARCHAR(128) NOT NULL, 
    status VARCHAR(16) DEFAULT 'claimed' NOT NULL, 
    token UUID NOT NULL, 
    attempt INTEGER DEFAULT 1 NOT NULL, 
    result TEXT, 
    error TEXT, 
    payload TEXT, 
    details TEXT, 
    lease_expires_at TIMESTAMP WITH TIME ZONE, 
    effect_started_at TIMESTAMP WITH TIME ZONE, 
    created_at TIMESTAMP WITH TIME ZONE DEFAULT CURRENT_TIMESTAMP NOT NULL, 
    completed_at TIMESTAMP WITH TIME ZONE, 
    CONSTRAINT pk_execution_requests PRIMARY KEY (scope, request_id), 
    CONSTRAINT ck_execution_requests_request_id CHECK (length(request_id) > 0), 
    CONSTRAINT ck_execution_requests_status CHECK (status IN ('claimed', 'completed', 'refused', 'leased', 'failed', 'in_doubt', 'expired')), 
    CONSTRAINT ck_execution_requests_result CHECK (status NOT IN ('completed', 'refused') OR result IS NOT NULL), 
    CONSTRAINT ck_execution_requests_lease CHECK (status NOT IN ('leased', 'in_doubt') OR lease_expires_at IS NOT NULL)
);

ALTER TABLE execution_requests SET (fillfactor = 80);

CREATE INDEX ix_execution_requests_open ON execution_requests (lease_expires_at) WHERE lease_expires_at IS NOT NULL OR payload IS NOT NULL;
